"""Two plans, or two reports, side by side: which figures changed, what moved where, and what was asked differently."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.findings import translate
from edgeopt.profiles.plans import plan_of
from edgeopt.profiles.reader import field_name, read_document
from edgeopt.profiles.writer import parse_own
from edgeopt.questions.figures import traffic_bytes
from edgeopt.questions.terms import element_names
from edgeopt.report.data import Comparison, Report

__all__ = ["Difference", "Figure", "Move", "diff", "load_subject"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number on both sides; ``None`` where a side does not have it.

    ``noise`` is the larger spread of two measurements: a change within it says nothing. 0 for predictions.
    """

    name: str
    before: float | None
    after: float | None
    noise: float = 0.0

    @property
    def change(self) -> float | None:
        """After minus before."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True, slots=True)
class Move:
    """Elements ``start`` to ``stop`` (half open) that run elsewhere, or with another variant."""

    start: int
    stop: int
    elements: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs.

    Attributes
    ----------
    kind
        ``plan`` or ``report``.
    figures
        Every figure that either side has.
    moves
        Elements that changed place, in order; empty where the two have different elements.
    problem
        Field → values before and after, of all that the two problems state differently; ``None``: not stated.
    notes
        What cannot be compared.
    """

    kind: str
    figures: tuple[Figure, ...]
    moves: tuple[Move, ...]
    problem: dict[str, tuple[Any, Any]]
    notes: tuple[str, ...] = ()


def load_subject(path: Path) -> Plan | Report:
    """Read a plan or a report.

    Raises
    ------
    InputError
        Unreadable, or neither of the two.
    """
    document = read_document(path, None if path.suffix == ".json" else parse_own)
    if not str(document.data.get("format", "")).startswith("edgeopt-report/"):
        return plan_of(document)
    try:
        return Report.model_validate(document.data)
    except ValidationError as error:
        raise InputError([document.finding(*flaw) for flaw in translate(error, Report, document.data)]) from None


def diff(before: Plan | Report, after: Plan | Report) -> Difference:
    """Compare two plans, or two reports.

    Raises
    ------
    InputError
        One of each.
    """
    if isinstance(before, Plan) and isinstance(after, Plan):
        return _plans(before, after)
    if isinstance(before, Report) and isinstance(after, Report):
        return _reports(before, after)
    mend = "give two plans or two reports; a report has predicted beside measured already"
    raise InputError(Finding("B", "one is a plan and the other a report", mend))


def _plans(before: Plan, after: Plan) -> Difference:
    sides = [_plan_figures(plan) for plan in (before, after)]
    notes = []
    moves: list[Move] = []
    chains = before.is_chain and after.is_chain
    names = [element_names(plan.problem, plan.strategy) if chains else [] for plan in (before, after)]
    if not chains and before.strategy != after.strategy:
        notes.append("the two plans are of techniques with other parts, so stages are not compared")
    elif not chains:
        moves = list(_party_moves(before.stages, after.stages))
    elif names[0] == names[1]:
        moves = list(_moves(names[0], *(_places(plan.stages) for plan in (before, after))))
    else:
        notes.append("the two have different elements, so stages are not compared")
    dumps = [plan.problem.model_dump(mode="json", by_alias=True, exclude_defaults=True) for plan in (before, after)]
    problem = {field_name(path): values for path, *values in _changed(dumps[0], dumps[1], ())}
    if before.problem.objective != after.problem.objective:
        notes.append("the objectives differ, so their values say nothing about which plan is better")
    figures = tuple(Figure(name, sides[0].get(name), sides[1].get(name)) for name in _names(*sides))
    pairs = {name: (values[0], values[1]) for name, values in problem.items()}
    return Difference("plan", figures, tuple(moves), pairs, tuple(notes))


def _plan_figures(plan: Plan) -> dict[str, float | None]:
    figures: dict[str, float | None] = {
        "objective": plan.objective, "bound": plan.bound, "latency_s": plan.latency_s,
        "throughput_per_s": plan.throughput_per_s, "energy_j": plan.energy_j, "quality": plan.quality,
        "compute_s": sum(stage.compute_s for stage in plan.stages),
        "transfer_s": sum(transfer.seconds for transfer in plan.transfers), "traffic_bytes": traffic_bytes(plan),
        "stages": float(len(plan.stages)), **plan.metrics,
    }  # fmt: skip
    return {name: value for name, value in figures.items() if value is not None}


def _reports(before: Report, after: Report) -> Difference:
    sides = [dict(_measured(report)) for report in (before, after)]
    figures = []
    for name in _names(*sides):
        here, there = sides[0].get(name), sides[1].get(name)
        noise = max(side.spread for side in (here, there) if side is not None)
        medians = (None if side is None else side.median for side in (here, there))
        figures.append(Figure(name, *medians, noise=noise))
    notes = [
        f"{name} differ: {a} and {b}"
        for name, a, b in (
            ("plans", before.plan_digest[:12], after.plan_digest[:12]),
            ("launchers", before.launcher, after.launcher),
            ("processors", before.hardware.cpu, after.hardware.cpu),
            ("versions of edgeopt", before.edgeopt_version, after.edgeopt_version),
        )
        if a != b
    ]
    moves: list[Move] = []
    ends = [_chain_end(report.stages) for report in (before, after)]
    if before.strategy == after.strategy and ends == [None, None]:
        moves = list(_party_moves(before.stages, after.stages))
    elif before.model == after.model and ends[0] == ends[1] and ends[0] is not None:
        labels = [str(i) for i in range(ends[0])]
        moves = list(_moves(labels, *(_places(report.stages) for report in (before, after))))
    keys = ("problem", "model", "strategy", "repeat", "warmup", "seed", "in_flight")
    asked = {key: (getattr(before, key), getattr(after, key)) for key in keys}
    problem = {key: values for key, values in asked.items() if values[0] != values[1]}
    return Difference("report", tuple(figures), tuple(moves), problem, tuple(notes))


def _measured(report: Report) -> Iterator[tuple[str, Comparison]]:
    yield "latency_s", report.latency_s
    if report.throughput_per_s is not None:
        yield "throughput_per_s", report.throughput_per_s
    yield from report.metrics.items()
    for stage in report.stages:
        yield f"compute of {stage.start}:{stage.stop} on {stage.device}", stage.compute_s
    for move in report.transfers:
        yield f"{move.purpose} {move.cut} {move.source} → {move.destination}", move.seconds


def _names(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([*before, *after]))


def _places(stages: Any) -> list[str]:
    """Device, and variant where there is one, of each element."""
    return [
        stage.device + (f" ({stage.variant})" if stage.variant else "")
        for stage in stages
        for _ in range(stage.start, stage.stop)
    ]


def _moves(names: list[str], before: list[str], after: list[str]) -> Iterator[Move]:
    start = 0
    for (here, there), run in itertools.groupby(zip(before, after, strict=True)):
        stop = start + len(list(run))
        if here != there:
            elements = names[start] if stop == start + 1 else f"{names[start]} … {names[stop - 1]}"
            yield Move(start, stop, elements, here, there)
        start = stop


def _party_moves(before: Sequence[Any], after: Sequence[Any]) -> Iterator[Move]:
    """Yield the stages that another device, or another part of the work, stands in for."""
    for k, (a, b) in enumerate(itertools.zip_longest(before, after)):
        sides = [
            "nothing" if s is None else s.device + (f" ({s.variant})" if s.variant else "") + f": {s.elements}"
            for s in (a, b)
        ]
        if sides[0] != sides[1]:
            yield Move(k, k + 1, f"stage {k}", *sides)


def _chain_end(stages: Sequence[Any]) -> int | None:
    """Last element of stages that follow each other; ``None`` where they do not."""
    ends = [0, *(stage.stop for stage in stages)]
    return ends[-1] if all(stage.start == end for stage, end in zip(stages, ends, strict=False)) else None


def _changed(before: Any, after: Any, path: tuple[str | int, ...]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield path and values wherever two dumps differ; lists of another length, and long ones, as a whole."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted((before.keys() | after.keys()) - {"sources"}):  # where a number was written, not what it is
            yield from _changed(before.get(key), after.get(key), (*path, key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from _changed(a, b, (*path, i))
    elif before != after and not (_is_nan(before) and _is_nan(after)):
        yield path, _brief(before), _brief(after)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _brief(value: Any) -> Any:
    """A list of devices or layers by their names, other data as it is."""
    if isinstance(value, list):
        return [item.get("name", item) if isinstance(item, dict) else item for item in value]
    if isinstance(value, dict):
        return value.get("name", value)
    return value
