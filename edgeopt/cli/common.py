"""What verbs share: option types, quantities on the command line, files, progress, JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeopt.cli import completion

__all__ = [
    "Backend", "Json", "Output", "PlanFile", "ProblemName", "drawable", "duration", "existing", "hand_over",
    "print_json", "progress_line", "writable", "write",
]  # fmt: skip

Backend = Annotated[str, typer.Option(help="exact, pulp, ortools or cvxpy.", autocompletion=completion.backends)]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]
ProblemName = Annotated[
    str, typer.Argument(help="A problem file, or the name of a bundled problem.", autocompletion=completion.problems)
]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file, written by `edgeopt solve -o`.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File to write: YAML, or JSON where it ends in .json.")
]


def duration(option: str, text: str | None) -> float | None:
    """Return seconds from text with a unit."""
    from edgeopt.errors import Finding, InputError
    from edgeopt.units import Seconds

    if text is None:
        return None
    try:
        return Seconds.__metadata__[0].parse(text)
    except ValueError as error:
        mend = (getattr(error, "context", None) or {}).get("mend", "")
        raise InputError(Finding(field=option, message=str(error), mend=mend)) from error


def existing(path: Path) -> Path:
    """Return the path of a plan that is there."""
    from edgeopt.errors import Finding, InputError

    if not path.is_file():
        raise InputError(
            Finding(field="PLAN", message=f"there is no file '{path}'", mend="make one with `edgeopt solve -o`")
        )
    return path


def writable(path: Path | None, option: str = "-o") -> None:
    """Refuse a target that cannot be written before any work is done for it; ``option`` is what named it."""
    from edgeopt.errors import Finding, InputError

    if path is not None and path.is_dir():
        raise InputError(Finding(field=option, message=f"'{path}' is a folder", mend="name a file in it"))
    if path is not None and not path.parent.is_dir():
        mend = f"make it: mkdir -p '{path.parent}'"
        raise InputError(Finding(field=option, message=f"the folder '{path.parent}' does not exist", mend=mend))


def drawable(path: Path | None, option: str) -> None:
    """Refuse a picture that cannot be written or drawn before any work is done for it."""
    from edgeopt.report.pictures import check_picture

    writable(path, option)
    if path is not None:
        check_picture(path, option)


def write(path: Path, document: Any) -> None:
    """Write a plan, a report or a profile, whole."""
    from edgeopt.files import write_whole
    from edgeopt.profiles import dump_yaml

    text = document.model_dump_json(by_alias=True, indent=2) + "\n" if path.suffix == ".json" else dump_yaml(document)
    write_whole(path, text)


def hand_over(profile: Any, output: Path | None, json: bool) -> None:
    """Write a measured profile to a file or to standard output."""
    from edgeopt.profiles import dump_yaml

    if output is not None:
        write(output, profile)
    if json:
        print_json(profile.model_dump(mode="json", by_alias=True))
    else:
        print(f"profile written to {output}" if output else dump_yaml(profile), end="\n" if output else "")


def print_json(document: Any) -> None:
    """Print one JSON document; what is infinite or not a number becomes null."""
    import json

    from edgeopt.report.document import plain

    print(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def progress_line(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is going on, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update
