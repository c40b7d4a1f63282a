"""Tables for people: a plan with its proof, a run beside its prediction, the library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from edgeopt.plan import Plan

if TYPE_CHECKING:
    from edgeopt.profiles.calibration import Calibration
    from edgeopt.report.data import Comparison, Report

__all__ = [
    "METRIC_NAMES", "STATUS_WORDS", "calibration_view", "format_bytes", "format_count", "format_percent",
    "format_seconds", "is_duration", "library_view", "new_table", "plan_view", "proof_line", "report_view", "show",
]  # fmt: skip

_OBJECTIVE_UNITS = {
    "latency": "s",
    "throughput": "s per request",
    "energy": "J",
    "quality": "",
    "ttft": "s",
    "tpot": "s",
}
#: A plan's status in words.
STATUS_WORDS = {
    "optimal": "optimal",
    "gap_reached": "stopped at the requested gap",
    "time_limit": "stopped at the time limit",
    "infeasible": "infeasible",
}
#: Figures of techniques in words.
METRIC_NAMES = {
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
    "tokens_per_s": "tokens/s",
    "images_per_s": "images/s",
}


def show(*parts: RenderableType) -> None:
    """Print to standard output; without a terminal at full width, so that nothing is cut when piped."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str | Text))


def format_seconds(seconds: float) -> str:
    """Return seconds with a readable unit and four digits: ``1.234 s``, ``56.78 ms``, ``9.012 µs``."""
    if not math.isfinite(seconds):
        return str(seconds)
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(seconds) >= factor:
            return f"{seconds / factor:.4g} {unit}"
    return f"{seconds / 1e-6:.4g} µs" if seconds else "0 s"


def format_bytes(amount: float) -> str:
    """Return bytes with a decimal prefix (kB is 1000 B)."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(amount) >= factor:
            return f"{amount / factor:.3g} {unit}" if amount < 999.5 * factor else f"{amount / factor:.0f} {unit}"
    return f"{amount:.0f} B"


def format_percent(fraction: float) -> str:
    """Return a fraction in percent, an exact zero as ``0 %``."""
    return "0 %" if fraction == 0 else f"{100 * fraction:.3g} %"


def new_table(title: str, *columns: str) -> Table:
    """Return a table whose columns are right-aligned where their name begins with ``>``."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left")
    return table


def plan_view(plan: Plan) -> Iterable[RenderableType]:
    """Yield the stages of a plan, its figures, its proof and its notes."""
    heading = f"{plan.problem.name}: {plan.problem.model.name}, {plan.strategy}"
    stages = new_table(heading, ">#", "device", "variant", "elements", ">compute", ">receive", ">bytes", ">memory")
    for stage in plan.stages:
        stages.add_row(
            str(stage.index), stage.device, stage.variant or "", f"{stage.elements} ({stage.start}:{stage.stop})",
            format_seconds(stage.compute_s), format_seconds(stage.transfer_s),
            format_bytes(stage.transfer_bytes), format_bytes(stage.memory_bytes),
        )  # fmt: skip
    yield stages
    for transfer in plan.transfers:
        if transfer.purpose in ("loop", "output"):
            yield Text(
                f"{transfer.purpose}: {transfer.source} → {transfer.destination}, {format_bytes(transfer.bytes)}, "
                f"{format_seconds(transfer.seconds)}"
            )
    yield from map(Text, _reservations(plan))
    yield Text(_figures(plan))
    yield Text(proof_line(plan), style="bold")
    for note in plan.notes:
        yield Text(f"note: {note}")
    for other in plan.alternatives:
        figure = "no plan" if other.objective is None else f"objective {other.objective:.6g}"
        yield Text(f"also tried: {other.strategy}, {figure} ({other.remark or STATUS_WORDS[other.outcome]})")


def _reservations(plan: Plan) -> Iterator[str]:
    """Yield a line for each medium whose air time the plan divides: who holds how much, and the rate it gives."""
    held: dict[str, list[str]] = {}
    for transfer in plan.transfers if plan.shares is not None else []:
        if transfer.medium is not None and transfer.rate_bytes_per_s is not None:
            rate = f"{format_bytes(transfer.rate_bytes_per_s)}/s"
            text = f"{transfer.source} → {transfer.destination} {format_percent(transfer.share)} ({rate})"
            held.setdefault(transfer.medium, []).append(text)
    for medium, texts in held.items():
        yield f"shares of {medium}: {', '.join(texts)}"


def _figures(plan: Plan) -> str:
    parts = [f"latency {format_seconds(plan.latency_s)}", f"throughput {plan.throughput_per_s:.4g} requests/s"]
    if plan.energy_j is not None:
        parts.append(f"energy {plan.energy_j:.4g} J")
    if plan.quality is not None:
        metric = getattr(getattr(plan.problem.model, "quality", None), "metric", "quality")
        parts.append(f"{metric} {plan.quality:.4g}")
    for name, value in plan.metrics.items():
        parts.append(f"{METRIC_NAMES.get(name, name)} {format_seconds(value) if is_duration(name) else f'{value:.4g}'}")
    return ", ".join(parts)


def proof_line(plan: Plan) -> str:
    """Return how good the plan provably is, in one line."""
    goal = plan.problem.objective
    unit = _OBJECTIVE_UNITS[goal] if isinstance(goal, str) else "(weighted)"
    objective, bound = (f"{value:.6g} {unit}".rstrip() for value in (plan.objective, plan.bound))
    how = f"{plan.backend}, {format_seconds(plan.runtime_s)}"
    return f"{STATUS_WORDS[plan.status]}: objective {objective}, bound {bound}, gap {format_percent(plan.gap)} ({how})"


def report_view(report: Report) -> Iterable[RenderableType]:
    """Yield a run beside its prediction: stages, transfers, figures, the error by term, the output check."""
    where = f"{report.launcher} (emulated)" if report.emulated else report.launcher
    heading = f"{report.problem}: {report.model}, {report.strategy}, run {report.repeat} times on {where}"
    columns = (">predicted", ">measured", ">spread", ">error")
    stages = new_table(heading, ">stage", "device", "variant", "elements", *columns)
    for stage in report.stages:
        stages.add_row(
            str(stage.index), stage.device, stage.variant or "", f"{stage.elements} ({stage.start}:{stage.stop})",
            *_compared(stage.compute_s),
        )  # fmt: skip
    yield stages
    if report.transfers:
        transfers = new_table("", "transfer", "from", "to", ">bytes", ">messages", *columns)
        for transfer in report.transfers:
            transfers.add_row(
                f"{transfer.purpose} {transfer.cut}" if transfer.purpose == "cut" else transfer.purpose,
                transfer.source, transfer.destination, format_bytes(transfer.bytes), format_count(transfer.messages),
                *_compared(transfer.seconds),
            )  # fmt: skip
        yield transfers
    figures = new_table("", "figure", *columns)
    figures.add_row("latency", *_compared(report.latency_s), style="bold")
    if report.throughput_per_s is not None:
        figures.add_row("requests per second", *_compared(report.throughput_per_s, False), style="bold")
    for name, comparison in report.metrics.items():
        figures.add_row(METRIC_NAMES.get(name, name), *_compared(comparison, is_duration(name)))
    yield figures
    if (responses := report.responses) is not None:
        interval = ""
        if responses.low_s is not None and responses.high_s is not None:
            interval = f" (95 % confidence: {format_seconds(responses.low_s)} to {format_seconds(responses.high_s)})"
        yield Text(
            f"responses to {responses.requests} requests: mean {format_seconds(responses.mean_s)}{interval}, "
            f"median {format_seconds(responses.median_s)}, 95 % within {format_seconds(responses.p95_s)}"
        )
    split = report.error
    yield Text(
        f"predicted minus measured: {format_seconds(split.total_s)} = compute {format_seconds(split.compute_s)}"
        f" + transfers {format_seconds(split.transfer_s)} + overhead {format_seconds(split.overhead_s)}"
    )
    yield Text(_output_line(report))
    for note in report.notes:
        yield Text(f"note: {note}")


def _compared(comparison: Comparison, duration: bool = True) -> tuple[str, str, str, str]:
    """Return the cells predicted, measured, spread and relative error."""

    def figure(value: float | None) -> str:
        if value is None:
            return "–"
        return format_seconds(value) if duration else f"{value:.4g}"

    error = "–" if comparison.relative_error is None else f"{100 * comparison.relative_error:+.1f} %"
    return figure(comparison.predicted), figure(comparison.median), figure(comparison.spread), error


def format_count(number: float) -> str:
    """Write a number of messages; where few are sent now and then it is an average."""
    return f"{number:.0f}" if number == round(number) or number >= 10 else f"{number:.3g}"


def _output_line(report: Report) -> str:
    check = report.output
    if check is None:
        return "output: not compared with a single-process run"
    verdict = "equals" if check.equal else "DIFFERS from"
    how = check.kind
    if check.max_abs_diff:
        how += f", largest difference {check.max_abs_diff:.3g}"
    repeats = "" if check.repeats_equal else "; the repeats DIFFER among themselves"
    return f"output: {verdict} the single-process run ({how}){repeats}"


def is_duration(name: str) -> bool:
    """Say whether a figure of that name is in seconds."""
    return name.endswith("_s") and not name.endswith("_per_s")


def calibration_view(name: str, calibration: Calibration) -> Iterable[RenderableType]:
    """Yield what a calibration changed and how far predictions were off before and after."""
    corrections = new_table(name, "number", ">before", ">after")
    for one in calibration.corrections:
        corrections.add_row(one.field, f"{one.before:.4g}", f"{one.after:.4g}")
    yield corrections
    residuals = new_table("", "fitted", ">measured", ">error before", ">error after")
    for row in calibration.residuals:
        errors = (f"{100 * error:+.1f} %" for error in (row.before, row.after))
        residuals.add_row(row.what, format_seconds(row.measured_s), *errors)
    yield residuals


def library_view(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return the library as a table: kind, name, what it is."""
    table = new_table("", "kind", "name", "description")
    for entry in entries:
        table.add_row(entry["kind"], entry["name"], entry["description"])
    return table
