"""A grid over fields of a problem: ``FIELD=VALUES``, one axis each.

``network.links[0].rate=10..1000 Mbit/s log 20`` is twenty rates, equally far apart on a logarithmic scale;
``workload.steps=10..50 step 10`` and ``workload.steps=10,20,50`` are what they say; ``model=llama-3.2-1b,llama-3.2-3b``
takes parts of the library; ``devices=all, without phone, laptop+desktop`` says who may compute.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.change import Editor
from edgeopt.profiles.problem import Problem
from edgeopt.profiles.reader import FieldPath, field_name

__all__ = ["MAX_POINTS", "Axis", "Grid", "parse_grid"]

#: Points of the largest grid; a day of solving at a second each.
MAX_POINTS = 100_000

#: Who may compute: every device, and every device but one, in turn.
_ALL, _EACH_LEFT_OUT = "all", "leave one out"

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_UNIT = r"(?!log\b|linear\b|step\b)[A-Za-zµμ][A-Za-zµμ/ ]*?"
_RANGE = re.compile(
    rf"(?P<first>{_NUMBER})\s*(?P<low_unit>{_UNIT})?\s*\.\.\s*(?P<last>{_NUMBER})\s*(?P<unit>{_UNIT})?\s+"
    rf"(?:(?P<scale>log|linear)\s+)?(?:(?P<count>\d{{1,6}})|step\s+(?P<step>{_NUMBER}))"
)
_BARE = re.compile(_NUMBER)
_WITH_UNIT = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<unit>{_UNIT})")
_WORDS = {"none": None, "null": None, "true": True, "false": False}

_EXAMPLE = "write for example 10..1000 Mbit/s log 20, 10..50 step 10, or 10, 20, 50"


@dataclass(frozen=True, slots=True)
class Axis:
    """One field and the values that it takes.

    Attributes
    ----------
    field
        As messages write it.
    path
        Of the field that is changed; of ``constraints.forbid`` where ``devices`` says who may compute.
    values
        As a problem file says them.
    cells
        The same in SI units, as tables show them.
    unit
        The unit that was written; empty where there was none.
    scale
        ``linear`` or ``log``; empty where values are no numbers.
    """

    field: str
    path: FieldPath
    values: tuple[Any, ...]
    cells: tuple[Any, ...]
    unit: str
    scale: str

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Grid:
    """Every combination of the axes' values; the last axis changes fastest from point to point."""

    editor: Editor
    axes: tuple[Axis, ...]

    def __len__(self) -> int:
        return math.prod(map(len, self.axes))

    def place(self, index: int) -> tuple[int, ...]:
        """Return which value of each axis a point has."""
        place = []
        for axis in reversed(self.axes):
            index, k = divmod(index, len(axis))
            place.append(k)
        return tuple(reversed(place))

    def cells(self, index: int) -> dict[str, Any]:
        """Return the values of a point by field, in SI units."""
        return {axis.field: axis.cells[k] for axis, k in zip(self.axes, self.place(index), strict=True)}

    def problem(self, index: int) -> Problem:
        """Return the problem of a point.

        Raises
        ------
        InputError
            The values do not fit together.
        """
        place = self.place(index)
        return self.editor.changed({axis.path: axis.values[k] for axis, k in zip(self.axes, place, strict=True)})

    @cached_property
    def along(self) -> int:
        """Index of the axis along which neighbours lie: the longest one of numbers."""
        return max(range(len(self.axes)), key=lambda i: (bool(self.axes[i].scale), len(self.axes[i]), i))

    def lines(self) -> Iterator[list[int]]:
        """Yield the points as lines: each point but the first of its line follows one that differs by a step."""
        length = len(self.axes[self.along])
        stride = math.prod(len(axis) for axis in self.axes[self.along + 1 :])
        for index in range(len(self)):
            if index // stride % length == 0:
                yield [index + k * stride for k in range(length)]

    def check(self) -> None:
        """Build every point's problem, so that nothing is refused later.

        Raises
        ------
        InputError
            Of the first point whose values do not fit together.
        """
        for index in range(len(self)):
            try:
                self.problem(index)
            except InputError as error:
                point = ", ".join(f"{field} = {cell}" for field, cell in self.cells(index).items())
                findings = [
                    Finding("--over", f"at {point}: {one.field}: {one.message}", one.mend) for one in error.findings
                ]
                raise InputError(findings) from None


def parse_grid(problem: Problem, words: Sequence[str]) -> Grid:
    """Read the axes of a grid and check every point of it.

    Parameters
    ----------
    problem
        What is changed.
    words
        ``FIELD=VALUES`` of each axis.

    Raises
    ------
    InputError
        Everything that is wrong with the axes, or with the first point whose values do not fit together.
    """
    editor = Editor(problem)
    axes: list[Axis] = []
    findings: list[Finding] = []
    for word in words:
        try:
            axes.append(_axis(editor, word))
        except InputError as error:
            findings += [Finding(f"--over {one.field}", one.message, one.mend) for one in error.findings]
    fields = [axis.field for axis in axes]
    findings += [
        Finding(f"--over {field}", "is given twice", "give all its values at once, separated by commas")
        for field in dict.fromkeys(fields)
        if fields.count(field) > 1
    ]
    if not words:
        findings.append(Finding("--over", "no field to change", f"{_EXAMPLE}, after FIELD="))
    if findings:
        raise InputError(findings)
    grid = Grid(editor, tuple(axes))
    if len(grid) > MAX_POINTS:
        raise InputError(Finding("--over", f"the grid has {len(grid)} points", f"stay below {MAX_POINTS}"))
    grid.check()
    return grid


def _axis(editor: Editor, word: str) -> Axis:
    text, equals, values = (part.strip() for part in word.partition("="))
    if not equals or not text or not values:
        raise _refused(text or word, f"'{word}' is not FIELD=VALUES", f"{_EXAMPLE}, after FIELD=")
    path = editor.path(text)
    if path == ("devices",):
        return _who_computes(editor, values)
    field = field_name(path)
    if match := _RANGE.fullmatch(values):
        written, unit, scale = _range(editor, path, match)
    else:
        written, unit, scale = _listed(field, values)
    cells = [_cell(editor, path, value) for value in written]
    return Axis(field, path, tuple(written), tuple(cells), unit, scale)


def _range(editor: Editor, path: FieldPath, match: re.Match[str]) -> tuple[list[Any], str, str]:
    """Return the values of ``FIRST..LAST UNIT SCALE COUNT`` or ``FIRST..LAST UNIT step STEP``."""
    field, unit = field_name(path), (match["unit"] or "").strip()
    if (match["low_unit"] or unit).strip() != unit:
        raise _refused(field, f"'{match[0]}' has two units", "write the unit once, after the second number")
    first, last = Decimal(match["first"]), Decimal(match["last"])
    scale = match["scale"] or "linear"
    if match["step"]:
        step = Decimal(match["step"])
        if step == 0 or (last - first) / step < 0 or scale == "log":
            raise _refused(field, f"'{match[0]}' leads nowhere", "write for example 10..50 step 10")
        numbers = [first + k * step for k in range(min(int((last - first) / step), MAX_POINTS) + 1)]
    else:
        count = int(match["count"])
        if count < 2:
            raise _refused(field, f"{count} is no number of values for a range", "give two or more, or write one value")
        if scale == "log" and not (first > 0 and last > 0):
            raise _refused(field, "a logarithmic range needs positive ends", "write `linear`, or positive ends")
        parts = [Decimal(k) / (count - 1) for k in range(count)]
        if scale == "log":
            numbers = [first * (last / first) ** part for part in parts[:-1]] + [last]
        else:
            numbers = [first + (last - first) * part for part in parts]
    # Twelve digits are far below what any profile knows, and keep 20 from becoming 19.999999999999996.
    plain = [float(f"{number:.12g}") for number in numbers]
    if unit:
        return list(dict.fromkeys(f"{number:.12g} {unit}" for number in plain)), unit, scale
    types = editor.types(path)
    if int in types and float not in types:
        return list(dict.fromkeys(round(number) for number in plain)), unit, scale
    return list(dict.fromkeys(plain)), unit, scale


def _listed(field: str, text: str) -> tuple[list[Any], str, str]:
    """Return the values of a list; a unit after the last number is that of all of them."""
    words = [word.strip().strip("'\"") for word in text.split(",")]
    if "" in words:
        raise _refused(field, f"'{text}' has an empty place between commas", "remove the extra comma")
    last = _WITH_UNIT.fullmatch(words[-1])
    unit = last["unit"].strip() if last else ""
    if unit:
        words = [f"{word} {unit}" if _BARE.fullmatch(word) else word for word in words]
    numbers = all(_BARE.fullmatch(word) or _WITH_UNIT.fullmatch(word) for word in words)
    values = list(dict.fromkeys(_value(word) for word in words))
    return values, unit, "linear" if numbers and len(values) > 1 else ""


def _value(word: str) -> Any:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if not _BARE.fullmatch(word):
        return word
    return int(word) if re.fullmatch(r"[-+]?\d+", word) else float(word)


def _cell(editor: Editor, path: FieldPath, value: Any) -> Any:
    """Return a value in SI units; refuses one that is wrong whatever the other axes say."""
    try:
        at: Any = editor.changed({path: value})
    except InputError as error:
        own = [one for one in error.findings if one.field.startswith(field_name(path))]
        if own:
            raise InputError(own) from None
        return value  # it may fit together with another axis; every point is checked later
    for part in path:
        name = "from_" if part == "from" else str(part)
        at = at[part] if isinstance(at, list | tuple | dict) else getattr(at, name)
    return value if isinstance(value, str) and not isinstance(at, float) else at


def _who_computes(editor: Editor, text: str) -> Axis:
    """Read sets of devices; who is left out stays in the problem, as the source or between links, and hosts nothing."""
    names = [device.name for device in editor.problem.devices]
    forbidden = editor.problem.constraints.forbid
    able = [name for name in names if name not in forbidden]
    sets: dict[str, list[str]] = {}
    for word in (part.strip() for part in text.split(",")):
        if word == _ALL:
            chosen = [able]
        elif word == _EACH_LEFT_OUT:
            chosen = [[name for name in able if name != out] for out in able]
        elif word.startswith("without "):
            out = _devices(word.removeprefix("without "), names)
            chosen = [[name for name in able if name not in out]]
        else:
            chosen = [_devices(word, names)]
        for one in chosen:
            if not one:
                raise _refused("devices", f"'{word}' leaves no device", "leave at least one that may compute")
            sets["+".join(one)] = [name for name in names if name not in one]
    return Axis("devices", ("constraints", "forbid"), tuple(sets.values()), tuple(sets), "", "")


def _devices(text: str, names: list[str]) -> list[str]:
    chosen = [part.strip() for part in text.split("+")]
    for name in chosen:
        if name not in names:
            mend = f"write all, leave one out, without {names[0]}, or names joined by +: {', '.join(names)}"
            raise _refused("devices", f"there is no device '{name}' in the problem", mend)
    return [name for name in names if name in chosen]


def _refused(field: str, message: str, mend: str) -> InputError:
    return InputError(Finding(field, message, mend))
