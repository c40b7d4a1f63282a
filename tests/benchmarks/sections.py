"""Pages of measurements, section by section: a benchmark replaces its own and leaves the rest of the page alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

from edgeopt.executor.hardware import describe_hardware

__all__ = ["HEADS", "made_by", "table", "with_section", "write_section"]

#: How a page begins that is not there yet, by the name of its file.
HEADS = {
    "diffusion.md": "# Diffusion: quality and latency\n\nFormulations and profiles: [Quality](../quality.md).\n",
    "llm.md": (
        "# Language models\n\nWhat plans for language models promise beside what runs of them took. Formulations: "
        "[one chain](../formulations/chain.md), [small integers and thresholds](../formulations/policy.md).\n"
    ),
}


def with_section(page: str, title: str, lines: Sequence[str]) -> str:
    """Return a page with the section of this title replaced, or added at the end."""
    body = f"## {title}\n\n" + "\n".join(lines).rstrip() + "\n"
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    if found is None:
        return f"{page.rstrip()}\n\n{body}"
    rest = page[found.end() :]
    return page[: found.start()] + body + ("\n" + rest if rest else "")


def write_section(file: Path, title: str, lines: Sequence[str]) -> None:
    """Replace or add the section in a file, which begins as :data:`HEADS` says where it is new."""
    page = file.read_text(encoding="utf-8") if file.exists() else HEADS.get(file.name, f"# {file.stem}\n")
    file.write_text(with_section(page, title, lines), encoding="utf-8")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:]]


def made_by(command: str, *, quick: bool, on: str = "one thread of") -> str:
    """Say how, when and on what a section was made."""
    warning = ", A SHAKE-DOWN: figures mean nothing" if quick else ""
    return f"`{command}`, {date.today().isoformat()}, {on} {describe_hardware().cpu}{warning}."
