"""The verb for the first five minutes: init asks, writes a problem file, solves it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli import completion
from edgeopt.cli.common import Json, duration, print_json, progress_line, writable

if TYPE_CHECKING:
    from edgeopt.profiles.draft import Draft

__all__ = ["init"]

_DEFAULT_NETWORK, _DEFAULT_OBJECTIVE = "wifi-5-home", "latency"


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The problem file to write.")] = Path("problem.yaml"),
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]LIBRARY",
            help="A device of the library or a path; repeatable, the source first.",
            autocompletion=completion.devices,
        ),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="A network of the library, or a path.", autocompletion=completion.networks)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model of the library, or a path.", autocompletion=completion.models)
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=NUMBER,...", help="prompt_tokens=512,new_tokens=128 or steps=20,images=1."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="latency, throughput, energy or quality.", autocompletion=completion.objectives),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing that has a default: network, workload and objective.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    time_limit: Annotated[str, typer.Option(metavar="DURATION", help="For solving.")] = "30 s",
    json: Json = False,
) -> None:
    """Ask for devices, network and model, write a commented problem file, and solve it."""
    from edgeopt import planner
    from edgeopt.errors import EdgeoptError, InputError
    from edgeopt.profiles.draft import draft

    limit_s = duration("--time-limit", time_limit)
    _check_target(file, force)
    given = {"model": model, "device": device, "network": network, "workload": workload, "objective": objective}
    answers = _answers(file, given, yes, json)
    text, problem = draft(answers, file)
    try:
        with progress_line(json) as progress:
            progress(f"solving {problem.name}")
            plan = planner.solve(problem, time_limit_s=limit_s)
    except InputError:
        raise  # an answer is wrong
    except EdgeoptError:
        _written(file, text, json)  # the problem is there to be changed
        raise
    _written(file, text, json)
    following = shlex.join(["edgeopt", "explain", str(file)])
    if json:
        from edgeopt.report.document import plan_document

        print_json({"file": str(file), "plan": plan_document(plan), "next": following})
        return
    from edgeopt.report import tables

    tables.show(*tables.plan_view(plan))
    print(f"next: {following}")


def _written(file: Path, text: str, json: bool) -> None:
    from edgeopt.files import write_whole

    write_whole(file, text)
    if not json:
        print(f"problem written to {file}")


def _check_target(file: Path, force: bool) -> None:
    """Refuse a file that is not to be written before anything is asked."""
    from edgeopt.errors import Finding, InputError

    if file.suffix not in (".yaml", ".yml"):
        mend = f"name it {file.with_suffix('.yaml')}"
        raise InputError(Finding("FILE", f"'{file}' does not end in .yaml", mend))
    writable(file, "FILE")
    if file.exists() and not force:
        raise InputError(Finding("FILE", f"'{file}' is there already", "name another file, or replace it with --force"))


def _answers(file: Path, given: dict[str, Any], yes: bool, json: bool) -> Draft:
    """Return the flags, completed by defaults (``yes``) or by asking."""
    from edgeopt.profiles.draft import WORKLOADS, Draft, device_of, is_diffusion, workload_of

    open_questions = [key for key in given if not given[key]]
    missing = [key for key in open_questions if not yes or key in ("model", "device")]
    if missing and (json or not (sys.stdin.isatty() and sys.stdout.isatty())):
        raise _nobody_to_ask(missing)
    if missing:
        from edgeopt.cli import asking as ask
    devices: list[tuple[str, str]] = []
    for text in given["device"] or ():
        devices.append(device_of(text, [taken for taken, _ in devices]))
    model = given["model"] or ask.name_of("model", "Which model?", "llama-3.1-8b")
    images = is_diffusion(model)
    devices = devices or ask.devices()
    network = given["network"] or (
        _DEFAULT_NETWORK if yes else ask.name_of("network", "How are they connected?", _DEFAULT_NETWORK)
    )
    if given["workload"]:
        workload = workload_of(given["workload"])
    else:
        workload = dict(WORKLOADS[images]) if yes else ask.workload(WORKLOADS[images])
    objective = given["objective"] or (_DEFAULT_OBJECTIVE if yes else ask.objective())
    devices = [(name, _seen_from(file, ref)) for name, ref in devices]
    return Draft(file.stem, _seen_from(file, model), devices, _seen_from(file, network), workload, objective)


def _seen_from(file: Path, ref: str) -> str:
    """Return a path as the problem file has to write it; a name as it is."""
    from edgeopt.profiles.library import is_path

    return Path(os.path.relpath(ref, file.parent)).as_posix() if is_path(ref) and not Path(ref).is_absolute() else ref


def _nobody_to_ask(missing: list[str]) -> Exception:
    from edgeopt.errors import Finding, InputError

    mends = {
        "model": "add --model NAME; `edgeopt profiles list models` shows the library",
        "device": "add --device NAME for each; `edgeopt profiles list devices` shows the library",
        "network": f"add --network NAME, or --yes for {_DEFAULT_NETWORK}",
        "workload": "add --workload prompt_tokens=512,new_tokens=128 (steps=20 for images), or --yes",
        "objective": f"add --objective, or --yes for {_DEFAULT_OBJECTIVE}",
    }
    message = "is missing, and there is no terminal to ask on"
    return InputError([Finding(f"--{key}", message, mends[key]) for key in missing])
