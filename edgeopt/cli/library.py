"""The verbs on the library: profiles list, show, validate, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import completion
from edgeopt.cli.common import Json, print_json

__all__ = ["list_", "schema", "show", "validate"]


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help="device, model, network or problem; default: all.", autocompletion=completion.kinds),
    ] = None,
    json: Json = False,
) -> None:
    """List what the library holds."""
    from edgeopt.profiles import list_profiles

    entries = list_profiles(kind)
    if json:
        print_json(entries)
    else:
        from edgeopt.report import tables

        tables.show(tables.library_view(entries))


def show(
    name: Annotated[
        str, typer.Argument(help="Name or path of a profile, problem or plan.", autocompletion=completion.names)
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            help="device, model, network or problem, where a name is several.", autocompletion=completion.kinds
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Print a file as it was understood: names resolved, quantities in SI units."""
    from edgeopt.profiles import dump_yaml, load

    loaded = load(name, kind)
    if json:
        print_json(loaded.model_dump(mode="json", by_alias=True))
    else:
        print(dump_yaml(loaded), end="")


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Profile, problem or plan files.")],
    json: Json = False,
) -> None:
    """Check files; everything that is wrong is listed with its line and its mend."""
    from edgeopt.errors import InputError
    from edgeopt.profiles import validate as check

    findings = {str(file): check(file) for file in files}
    if wrong := [finding for found in findings.values() for finding in found]:
        raise InputError(wrong)
    if json:
        print_json({"valid": list(findings)})
    else:
        print("\n".join(f"{file}: valid" for file in findings))


def schema(
    kind: Annotated[str, typer.Argument(help="device, model, network or problem.", autocompletion=completion.kinds)],
) -> None:
    """Print the JSON Schema by which editors complete a file."""
    from edgeopt.profiles import json_schema

    print_json(json_schema(kind))
