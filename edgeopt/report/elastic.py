"""A request whose devices changed: before and after as tables for people, as a document for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from edgeopt.questions.elastic import Elastic, Outcome
from edgeopt.report.document import plain
from edgeopt.report.tables import format_seconds, new_table

__all__ = ["elastic_document", "elastic_view"]


def elastic_document(found: Elastic) -> dict[str, Any]:
    """Return what ``edgeopt elastic --json`` prints."""
    outcomes = {"planned": found.planned, "kept": found.kept, "replanned": found.replanned}
    return plain(
        {
            "problem": found.plan.problem.name,
            "events": [{"kind": event.kind, "device": event.device, "factor": event.factor} for event in found.events],
            "step": found.step,
            "resumed_at": found.resumed_at,
            "holder": found.holder,
            "spent_s": found.spent_s,
            "status": found.status,
            "gap": found.gap,
            **{name: asdict(outcome) for name, outcome in outcomes.items()},
            "stages": [
                stage.model_dump(include={"device", "variant", "start", "stop", "compute_s", "transfer_s"})
                for stage in found.stages
            ],
        }
    )


def elastic_view(found: Elastic) -> Iterable[RenderableType]:
    """Yield the request three ways (planned, as the old plan would end, planned again) and what is left of it."""
    what = ", ".join(map(str, found.events))
    lost = found.step - found.resumed_at
    resumed = f"goes on from step {found.resumed_at}, held by {found.holder}"
    repeated = f"; {lost} steps are lost and done again" if lost else ""
    yield Text(f"{found.plan.problem.name} after {found.step} steps and {format_seconds(found.spent_s)}: {what}")
    yield Text(resumed + repeated)
    model = found.plan.problem.model
    metric = getattr(getattr(model, "quality", None), "metric", "quality")
    table = new_table("the whole request", "", ">latency", f">{metric}", "denoisers by steps")
    for name, outcome in (
        ("as planned", found.planned), ("old plan, devices changed", found.kept), ("planned again", found.replanned),
    ):  # fmt: skip
        table.add_row(name, *_cells(outcome))
    yield table
    if found.stages:
        rest = new_table("what is left", ">stage", "device", "variant", "elements", ">arrives in", ">compute")
        for stage in found.stages:
            rest.add_row(
                str(stage.index), stage.device, stage.variant or "", f"{stage.elements} ({stage.start}:{stage.stop})",
                format_seconds(stage.transfer_s), format_seconds(stage.compute_s),
            )  # fmt: skip
        yield rest
        if found.replanned.reason:
            yield Text(f"given up: {found.replanned.reason}; planned for the best quality that is left")
        yield Text(f"{found.status}: gap of the rest {found.gap:.2%}; latencies count from the start of the request")


def _cells(outcome: Outcome) -> tuple[str, str, str]:
    if outcome.latency_s is None:
        return "impossible", "", outcome.reason
    quality = "" if outcome.quality is None else f"{outcome.quality:.4g}"
    runs = ", ".join(f"{len(list(same))} {name}" for name, same in groupby(outcome.variants))
    return format_seconds(outcome.latency_s), quality, runs
