"""Command line: parse, call, print.

Whatever a verb needs is imported inside it, so that ``--help`` starts fast and ``solve`` never loads torch.
Exit codes: 0 done; 1 no plan exists or a check or a run failed; 2 bad input; 3 time limit without a plan.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from edgeopt import __version__
from edgeopt.cli import (
    calibrate,
    export,
    init,
    library,
    link,
    measure,
    plans,
    quality,
    questions,
    report,
    router,
    sweep,
)
from edgeopt.cli.common import print_json

__all__ = ["app", "main"]

app = typer.Typer(
    name="edgeopt",
    help="Plan large generative models over unequal devices and slow links, with a proof; then run the plan.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(init.init)
app.command()(plans.solve)
app.command()(questions.compare)
app.command()(questions.explain)
app.command()(questions.diff)
app.command()(questions.elastic)
app.command()(sweep.sweep)
app.command()(plans.verify)
app.command()(plans.execute)
app.command()(export.export)
app.command()(report.report)
app.command()(quality.quality)
app.command()(calibrate.calibrate)
_profile = typer.Typer(help="Measure this machine into a profile.", no_args_is_help=True)
_profile.command("device")(measure.profile_device)
_profile.command("link")(link.profile_link)
_profile.command("model")(measure.profile_model)
_profile.command("quality")(quality.profile_quality)
_profile.command("router")(router.profile_router)
app.add_typer(_profile, name="profile")
_profiles = typer.Typer(help="Look into the library of devices, models, networks and problems.", no_args_is_help=True)
_profiles.command("list")(library.list_)
_profiles.command("show")(library.show)
_profiles.command("validate")(library.validate)
_profiles.command("schema")(library.schema)
app.add_typer(_profiles, name="profiles")


#: 128 and the number of SIGINT, as shells count.
_INTERRUPTED = 130


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edgeopt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    """Options of every verb; ``--debug`` is taken off the line in :func:`main`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become a short message and the command to try next."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    try:
        command = shlex.join(["edgeopt", *arguments])
        code: int = app(arguments, prog_name="edgeopt", standalone_mode=False, obj=command) or 0
        if code == _INTERRUPTED:  # typer makes a code of Ctrl-C and says nothing
            raise KeyboardInterrupt
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _report_error(error, arguments)


def _report_error(error: Exception, arguments: list[str]) -> int:
    from edgeopt.report import failure

    code, text = failure.exit_code(error), failure.message(error)
    if not text:  # a verb is missing, and the help has been printed
        return code
    if "--json" in arguments:
        print_json(failure.error_document(error, arguments))
    else:
        print(f"error: {text}\ntry: {failure.next_command(error, arguments)}", file=sys.stderr)
    return code
