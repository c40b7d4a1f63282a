"""The verb that takes a plan elsewhere: export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import completion
from edgeopt.cli.common import Json, PlanFile, existing, print_json, writable
from edgeopt.files import write_whole

__all__ = ["export"]


def export(
    plan: PlanFile,
    to: Annotated[
        str,
        typer.Option(
            help="accelerate, torch-pipelining, transformers, vllm or llama.cpp.", autocompletion=completion.targets
        ),
    ],
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=THERE", help="What a device is called there: desktop=cuda:0, phone=192.168.1.7."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="File to write; default: standard output.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a language model's split in another tool's words; notes say what that tool does otherwise."""
    from edgeopt.export import export_plan
    from edgeopt.profiles import load_plan

    writable(output)
    exported = export_plan(load_plan(existing(plan)), to, _names(device or ()))
    if output is not None:
        write_whole(output, exported.text)
    if json:
        print_json(
            {"target": exported.target, "text": exported.text, "devices": exported.devices, "notes": exported.notes}
        )
        return
    print(exported.text, end="") if output is None else print(f"written to {output}")
    for note in exported.notes:  # standard output is for the tool
        print(f"note: {note}", file=sys.stderr)


def _names(words: list[str] | tuple[str, ...]) -> dict[str, str]:
    from edgeopt.errors import Finding, InputError

    pairs = [word.partition("=") for word in words]
    if wrong := [word for word, (name, _, value) in zip(words, pairs, strict=True) if not name or not value]:
        raise InputError([Finding("--device", f"{word!r} is not NAME=THERE", "as in desktop=cuda:0") for word in wrong])
    names = {name: value for name, _, value in pairs}
    if len(names) < len(pairs):
        raise InputError(Finding("--device", f"a device is named twice in {', '.join(words)}", "name each once"))
    return names
