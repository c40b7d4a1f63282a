"""One self-contained page of a plan, and of a run of it: charts, tables, proof, and where every number comes from.

The page asks nothing of any network, runs no script, and forbids both to its browser. The same plan and report make
the same page, up to the date in it.
"""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgeopt
from edgeopt.errors import EdgeoptError, Finding, InputError, MissingDependencyError
from edgeopt.files import write_whole
from edgeopt.plan import Plan
from edgeopt.profiles.plans import dump_yaml
from edgeopt.profiles.problem import TextWorkload
from edgeopt.report.data import Report
from edgeopt.report.tables import format_percent, format_seconds

if TYPE_CHECKING:
    from edgeopt.questions.frontier import Frontier

__all__ = ["check_page", "page_text", "write_page"]

_SUFFIXES = (".html", ".htm")


def check_page(path: Path) -> None:
    """Refuse a page that cannot be written before any work is done for it.

    Raises
    ------
    InputError
        The name does not end in ``.html``.
    MissingDependencyError
        matplotlib or jinja2 is not installed.
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(Finding("-o", f"'{path}' is no name of a page", "end it in .html"))
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "report", "making a page")


def write_page(path: Path, plan: Plan, report: Report | None = None, frontier: Frontier | None = None) -> None:
    """Write the page, whole or not at all; arguments and exceptions as :func:`check_page` and :func:`page_text`."""
    check_page(path)
    write_whole(path, page_text(plan, report, frontier))


def page_text(
    plan: Plan, report: Report | None = None, frontier: Frontier | None = None, date: datetime | None = None
) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    plan
        What the page is about; after a run that went over to another plan, that plan.
    report
        A run of this plan, to be put beside the prediction.
    frontier
        Plans that trade two metrics, to be drawn around this one.
    date
        Of the page; default: now.

    Raises
    ------
    InputError
        ``report`` is about another plan.
    MissingDependencyError
        matplotlib or jinja2 is not installed.
    """
    check_page(Path("page.html"))
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if report is not None:
        if report.replanned is not None:
            plan = report.replanned
        elif report.plan_digest != plan.digest():
            message = f"is about another plan ({report.plan_digest[:12]}… is not {plan.digest()[:12]}…)"
            raise InputError(Finding("REPORT", message, "give the plan that was executed, unchanged"))
    templates = Environment(
        loader=PackageLoader("edgeopt", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    date = datetime.now(UTC) if date is None else date
    text: str = templates.get_template("page.html.j2").render(_contents(plan, report, frontier), date=date)
    return text


def _contents(plan: Plan, report: Report | None, frontier: Frontier | None) -> dict[str, Any]:
    from edgeopt.questions.figures import memory_by_device
    from edgeopt.report import charts, page_tables
    from edgeopt.report.graph import graph_chart

    try:
        memory, mismatches = memory_by_device(plan), _recomputed(plan)
    except EdgeoptError:  # a strategy that is not installed here
        memory, mismatches = {}, None
        for stage in plan.stages:
            memory[stage.device] = max(memory.get(stage.device, 0.0), stage.memory_bytes)
    rows = charts.split_rows(plan, report)
    return {
        "plan": plan,
        "report": report,
        "title": f"{plan.problem.name}: {plan.problem.model.name}",
        "workload": _workload(plan),
        "cards": _cards(plan, report),
        "graph": graph_chart(plan),
        "timelines": charts.timeline_charts(plan, report),
        "split": charts.split_chart(rows),
        "memory": charts.memory_chart(plan, report, memory),
        "frontier": charts.frontier_chart(plan, frontier),
        "stages_table": page_tables.stages_table(plan, report),
        "transfers_table": page_tables.transfers_table(plan, report) if plan.transfers else None,
        "figures_table": page_tables.figures_table(plan, report),
        "timeline_table": page_tables.timeline_table(plan, report),
        "split_table": page_tables.split_table(rows),
        "decisions_table": page_tables.decisions_table(plan),
        "alternatives_table": page_tables.alternatives_table(plan),
        "frontier_table": None if frontier is None else page_tables.frontier_table(frontier),
        "proof_table": page_tables.proof_table(plan, report, mismatches),
        "recoveries_table": page_tables.recoveries_table(report),
        "hardware_table": page_tables.hardware_table(plan, report, edgeopt.__version__),
        "profiles": list(page_tables.provenance_of(plan)),
        "problem_text": dump_yaml(plan.problem),
        "mismatches": mismatches or [],
        "notes": [*plan.notes, *([] if report is None else report.notes)],
    }


def _recomputed(plan: Plan) -> list[str]:
    from edgeopt import planner

    return planner.verify(plan, resolve_time_limit_s=None)


def _workload(plan: Plan) -> str:
    workload = plan.problem.workload
    if isinstance(workload, TextWorkload):
        batch = f", batch of {workload.batch}" if workload.batch > 1 else ""
        return f"{workload.prompt_tokens} prompt tokens, {workload.new_tokens} new ones{batch}"
    images = f"{workload.images} images" if workload.images > 1 else "one image"
    return f"{images} in {workload.steps} steps" + (", guided" if workload.guidance > 1 else "")


def _cards(plan: Plan, report: Report | None) -> list[tuple[str, str, str]]:
    """Return what a reader wants first: name, figure, and a remark on it."""
    measured = ""
    if report is not None:
        error = report.latency_s.relative_error
        measured = f"measured {format_seconds(report.latency_s.median)}"
        measured += "" if error is None else f": {100 * abs(error):.1f} % too {'high' if error > 0 else 'low'}"
    cards = [("Latency", format_seconds(plan.latency_s), measured or "predicted")]
    for name, label in (("ttft_s", "First token"), ("tpot_s", "Each later token")):
        if name in plan.metrics:
            found = None if report is None else report.metrics.get(name)
            remark = "predicted" if found is None else f"measured {format_seconds(found.median)}"
            cards.append((label, format_seconds(plan.metrics[name]), remark))
    if plan.energy_j is not None:
        cards.append(("Energy", f"{plan.energy_j:.4g} J", "predicted, per request"))
    if plan.quality is not None:
        metric = getattr(getattr(plan.problem.model, "quality", None), "metric", "quality")
        cards.append(("Quality", f"{plan.quality:.4g}", f"{metric}, smaller is better"))
    proven = plan.status == "optimal"
    cards.append(("Proof", "optimal" if proven else f"gap {format_percent(plan.gap)}", f"gap {format_percent(plan.gap)}"
                  if proven else "no plan can be better by more"))  # fmt: skip
    if report is not None and report.output is not None:
        verdict = "equal" if report.output.equal else "DIFFERENT"
        cards.append(("Result of the run", verdict, f"to a single process ({report.output.kind})"))
    return cards
