"""The tables of a plan's page: a caption, headings (``>`` on the left of one aligns right) and rows of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.plan import Plan
from edgeopt.profiles.sources import provenance
from edgeopt.questions.figures import amount
from edgeopt.questions.frontier import METRICS, Frontier
from edgeopt.report.charts import Row
from edgeopt.report.data import Comparison, Report
from edgeopt.report.tables import METRIC_NAMES, format_bytes, format_count, format_percent, format_seconds, is_duration

__all__ = [
    "Sheaf", "Table", "alternatives_table", "decisions_table", "figures_table", "frontier_table", "hardware_table",
    "proof_table", "provenance_of", "recoveries_table", "split_table", "stages_table", "timeline_table",
    "transfers_table",
]  # fmt: skip

_NONE = "–"
#: Bars of a timeline that are listed one by one.
_LISTED = 60


@dataclass(frozen=True, slots=True)
class Table:
    """A caption, headings and rows; the first cell of a row names it, a note stands above."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def stages_table(plan: Plan, report: Report | None) -> Table:
    """Return what runs where, with the seconds measured if there was a run."""
    headings = ["stage", "device", "variant", "elements", ">compute"]
    if report is not None:
        headings += [">measured", ">error"]
    headings += [">input", ">arrives in", ">memory"]
    measured = {} if report is None else {stage.index: stage.compute_s for stage in report.stages}
    rows = []
    for stage in plan.stages:
        row = [
            str(stage.index), stage.device, stage.variant or _NONE, f"{stage.elements} ({stage.start}:{stage.stop})",
            format_seconds(stage.compute_s),
        ]  # fmt: skip
        if report is not None:
            row += _measured(measured.get(stage.index))
        row += [format_bytes(stage.transfer_bytes), format_seconds(stage.transfer_s), format_bytes(stage.memory_bytes)]
        rows.append(tuple(row))
    return Table("Stages, per request", tuple(headings), tuple(rows))


def transfers_table(plan: Plan, report: Report | None) -> Table:
    """Return what crosses links, with the seconds measured if there was a run."""
    headings = ["transfer", "from", "to", ">bytes", ">messages", ">share", ">rate", ">time"]
    if report is not None:
        headings += [">measured", ">error"]
    measured = {}
    if report is not None:
        measured = {(one.purpose, one.cut, one.source, one.destination): one.seconds for one in report.transfers}
    rows = []
    for one in plan.transfers:
        row = [
            f"{one.purpose} {one.cut}" if one.purpose == "cut" else one.purpose, one.source, one.destination,
            format_bytes(one.bytes), format_count(one.messages), format_percent(one.share),
            _NONE if one.rate_bytes_per_s is None else f"{format_bytes(one.rate_bytes_per_s)}/s",
            format_seconds(one.seconds),
        ]  # fmt: skip
        if report is not None:
            row += _measured(measured.get((one.purpose, one.cut, one.source, one.destination)))
        rows.append(tuple(row))
    return Table("Transfers, per request", tuple(headings), tuple(rows))


def _measured(found: Comparison | None) -> list[str]:
    if found is None:
        return [_NONE, _NONE]
    spread = f" ± {format_seconds(found.spread / 2)}" if found.spread else ""
    return [f"{format_seconds(found.median)}{spread}", _error(found)]


def _error(found: Comparison) -> str:
    return _NONE if found.relative_error is None else f"{100 * found.relative_error:+.1f} %"


def figures_table(plan: Plan, report: Report | None) -> Table:
    """Return the figures of a request, predicted beside measured."""
    unit = getattr(getattr(plan.problem.model, "quality", None), "metric", "quality")
    figures: list[tuple[str, str, Comparison | None, bool]] = [
        ("latency", format_seconds(plan.latency_s), report and report.latency_s, True),
        ("requests per second", _number(plan.throughput_per_s), report and report.throughput_per_s, False),
    ]
    if plan.energy_j is not None:
        figures.append(("energy", f"{plan.energy_j:.4g} J", None, False))
    if plan.quality is not None:
        figures.append((unit, _number(plan.quality), None, False))
    for name, value in plan.metrics.items():
        seconds = is_duration(name)
        text = format_seconds(value) if seconds else _number(value)
        figures.append((METRIC_NAMES.get(name, name), text, report and report.metrics.get(name), seconds))
    if report is None:
        return Table("Figures, predicted", ("figure", ">predicted"), tuple(row[:2] for row in figures))
    rows = []
    for name, predicted, found, seconds in figures:
        write = format_seconds if seconds else _number
        cells = (_NONE,) * 3 if found is None else (write(found.median), write(found.spread), _error(found))
        rows.append((name, predicted, *cells))
    return Table(
        "Figures, predicted beside measured", ("figure", ">predicted", ">measured", ">spread", ">error"), tuple(rows)
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "no limit"


def split_table(rows: Sequence[Row]) -> Table:
    """Return the latency split as numbers."""
    terms = list(dict.fromkeys(term for row in rows for term, _ in row.parts))
    body = []
    for row in rows:
        parts = dict(row.parts)
        cells = (format_seconds(parts[term]) if term in parts else _NONE for term in terms)
        body.append((row.who, row.basis, *cells, format_seconds(sum(parts.values()))))
    headings = ("whose time", "known from", *(f">{term}" for term in terms), ">sum")
    return Table("Where the time goes", headings, tuple(body))


def timeline_table(plan: Plan, report: Report | None) -> Table:
    """Return the first bars of the timelines as numbers."""
    rows = []
    for kind, bars in (("predicted", plan.timeline), ("measured", [] if report is None else report.timeline)):
        for one in bars[:_LISTED]:
            times = (one.start_s, one.stop_s, one.stop_s - one.start_s)
            rows.append((one.lane, kind, one.label, *map(format_seconds, times)))
        if len(bars) > _LISTED:
            rows.append(("…", kind, f"{len(bars) - _LISTED} more", _NONE, _NONE, _NONE))
    headings = ("device or link", "known from", "what", ">from", ">to", ">takes")
    return Table("The bars of the timeline", headings, tuple(rows))


def proof_table(plan: Plan, report: Report | None, mismatches: Sequence[str] | None) -> Table:
    """Return how good the plan provably is and who checked what; ``None``: it could not be recomputed here."""
    from edgeopt.report.tables import STATUS_WORDS

    if mismatches is None:
        checked = "not recomputed: this installation does not have the strategy"
    else:
        checked = "; ".join(mismatches) or "cost, memory and limits recomputed from the decisions agree"
    rows = [
        ("result", STATUS_WORDS[plan.status]),
        ("objective", amount(plan.objective, plan.problem)),
        ("bound: no plan can cost less", amount(plan.bound, plan.problem)),
        ("gap", format_percent(plan.gap)),
        ("method", f"{plan.backend}, {format_seconds(plan.runtime_s)}"),
        ("recomputed", checked),
        ("digest of the plan", plan.digest()),
    ]
    if report is not None:
        rows.append(("result of the run", _output(report)))
    return Table("Proof", ("", "says"), tuple(rows))


def _output(report: Report) -> str:
    if report.output is None:
        return "not compared with a single-process run"
    verdict = "equals" if report.output.equal else "DIFFERS from"
    return f"{verdict} the single-process run ({report.output.kind})"


def decisions_table(plan: Plan) -> Table | None:
    """Return what a technique that is no chain decided, ``None`` for a chain, whose stages say it."""
    rows = tuple(_decided("", plan.decisions))
    return Table("Decisions of the technique", ("decision", "value"), rows) if rows else None


def _decided(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _decided(f"{name}.{key}".lstrip("."), item)
    elif isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        for index, item in enumerate(value):
            yield from _decided(f"{name}[{index}]", item)
    else:
        yield name, _written(value)


def alternatives_table(plan: Plan) -> Table | None:
    """Return how other strategies fared, ``None`` if none was tried."""
    if not plan.alternatives:
        return None

    def cell(value: float | None, write: Any) -> str:
        return _NONE if value is None else write(value)

    rows = tuple(
        (
            one.strategy, one.outcome.replace("_", " "), cell(one.objective, lambda v: amount(v, plan.problem)),
            cell(one.bound, lambda v: amount(v, plan.problem)), cell(one.latency_s, format_seconds),
            cell(one.throughput_per_s, _number), cell(one.energy_j, lambda v: f"{v:.4g} J"),
            cell(one.quality, _number), cell(one.traffic_bytes, format_bytes), cell(one.memory_bytes, format_bytes),
            one.remark or _NONE,
        )
        for one in plan.alternatives
    )  # fmt: skip
    headings = (
        "strategy", "result", ">objective", ">bound", ">latency", ">requests/s", ">energy", ">quality", ">traffic",
        ">memory", "remark",
    )  # fmt: skip
    return Table("Other strategies for the same problem", headings, rows)


def frontier_table(frontier: Frontier) -> Table:
    """Return the points of a frontier with the plans that reach them."""
    headings = [f">{axis} [{METRICS[axis][1]}]".replace(" []", "") for axis in frontier.axes]
    rows = tuple(
        (
            str(index),
            f"{point.first:.4g}",
            f"{point.second:.4g}",
            point.plan.strategy,
            "; ".join(f"{one.device} {one.variant or ''} {one.start}:{one.stop}" for one in point.plan.stages),
        )
        for index, point in enumerate(frontier.points, 1)
    )
    complete = "No other plan is better in one of the two without being worse in the other."
    note = complete if frontier.complete else "There may be more plans between these (--points, --time-limit)."
    return Table("Plans on the frontier", ("plan", *headings, "strategy", "stages"), rows, note)


def recoveries_table(report: Report | None) -> Table | None:
    """Return the faults that the run got over."""
    if report is None or not report.recoveries:
        return None
    rows = tuple(
        (
            str(one.request), one.policy, one.device or _NONE, one.reason, one.resumed_from,
            format_seconds(one.planning_s), format_seconds(one.restart_s), format_seconds(one.rest_s),
            _NONE if one.equal is None else ("equal" if one.equal else "DIFFERS"),
        )
        for one in report.recoveries
    )  # fmt: skip
    headings = (
        "request", "policy", "lost", "why", "went on from", ">planning", ">restart", ">rest", "result",
    )  # fmt: skip
    return Table("Faults, and how the request got over them", headings, rows)


def hardware_table(plan: Plan, report: Report | None, page_version: str) -> Table:
    """Return what computed the figures: versions of the plan and the page, and the machine of the run."""
    rows = [("plan made by", f"edgeopt {plan.edgeopt_version}"), ("page made by", f"edgeopt {page_version}")]
    if report is not None:
        machine = report.hardware
        rows += [
            ("run", f"{report.date.isoformat(timespec='seconds')}, {report.repeat} requests after {report.warmup}"),
            ("launcher", report.launcher + (" (emulated hosts on one machine)" if report.emulated else "")),
            ("processor", machine.cpu),
            ("cores", f"{machine.usable_cores} usable of {machine.logical_cores}"),
            ("memory", format_bytes(machine.memory_bytes)),
            ("system", machine.system),
            ("Python", machine.python),
            *sorted(machine.versions.items()),
        ]
    return Table("Hardware and versions", ("what", "which"), tuple(rows))


@dataclass(frozen=True, slots=True)
class Sheaf:
    """All numbers of one profile with their sources."""

    name: str
    kind: str
    description: str
    source: str
    table: Table


def provenance_of(plan: Plan) -> Iterator[Sheaf]:
    """Yield, for each profile that the problem uses, every number with where it comes from."""
    problem = plan.problem
    for kind, profile in [*(("device", one) for one in problem.devices), ("network", problem.network),
                          ("model", problem.model)]:  # fmt: skip
        data = profile.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        rows = tuple((one.place, _written(one.value), one.source) for one in provenance(data))
        table = Table(f"Numbers of the {kind} {profile.name}", ("number", ">value", "source"), rows)
        yield Sheaf(profile.name, kind, profile.description, profile.source, table)


def _written(value: Any) -> str:
    """Write a value shortly: of long lists the ends and the length."""
    if isinstance(value, list):
        texts = [_written(item) for item in value]
        return ", ".join(texts) if len(texts) <= 8 else f"{texts[0]}, {texts[1]}, … {texts[-1]} ({len(texts)} values)"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
