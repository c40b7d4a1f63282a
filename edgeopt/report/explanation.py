"""Explanations and differences: as tables for people, as documents for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from edgeopt.plan import Plan
from edgeopt.questions.diff import Difference, Figure
from edgeopt.questions.explain import Explanation
from edgeopt.questions.figures import amount, short
from edgeopt.questions.prices import Price
from edgeopt.questions.why_not import Answer
from edgeopt.report.document import plain
from edgeopt.report.tables import format_bytes, format_percent, format_seconds, new_table, proof_line

__all__ = ["difference_document", "difference_view", "explanation_document", "explanation_view"]


def explanation_document(explanation: Explanation) -> dict[str, Any]:
    """Return what ``edgeopt explain --json`` prints."""
    plan = explanation.plan
    return plain(
        {
            "problem": plan.problem.name,
            "strategy": plan.strategy,
            "status": plan.status,
            "objective": plan.objective,
            "bound": plan.bound,
            "latency_s": plan.latency_s,
            "terms": [asdict(term) for term in explanation.terms],
            "busy": [{"who": who, "seconds": seconds} for who, seconds in explanation.busy.items()],
            "energy": [{"device": name, **asdict(terms)} for name, terms in explanation.energy.items()],
            "limits": None if explanation.prices is None else [_price_record(one) for one in explanation.prices],
            "missed": list(explanation.missed),
            "why_not": [_answer_record(answer) for answer in explanation.answers],
        }
    )


def _price_record(price: Price) -> dict[str, Any]:
    change = price.change
    return {
        "limit": change.limit, "change": change.what, "amount": change.amount, "before": price.before,
        "after": price.after, "gain": price.gain, "lifted": price.lifted, "proven": price.proven,
    }  # fmt: skip


def _answer_record(answer: Answer) -> dict[str, Any]:
    plan = answer.plan
    return {
        "question": answer.question,
        "possible": plan is not None,
        "granted": answer.granted,
        "price": answer.price,
        "proven": answer.proven,
        "broken": answer.broken,
        "objective": None if plan is None else plan.objective,
        "bound": answer.bound,
        "stages": [] if plan is None else _stages(plan),
    }


def _stages(plan: Plan) -> list[dict[str, Any]]:
    return [
        {key: getattr(stage, key) for key in ("device", "variant", "start", "stop", "compute_s", "transfer_s")}
        for stage in plan.stages
    ]


def explanation_view(explanation: Explanation) -> Iterable[RenderableType]:
    """Yield the cost by term, the limits that bind, and the answers."""
    plan = explanation.plan
    if explanation.answers:
        for answer in explanation.answers:
            yield from _answer_lines(answer, plan)
        return
    heading = f"{plan.problem.name}: {plan.problem.model.name}, {plan.strategy}"
    table = new_table(heading, "term", "where", "what", ">seconds", ">share", "of which")
    for term in explanation.terms:
        name = term.term if term.stage is None else f"stage {term.stage}"
        share = format_percent(term.seconds / plan.latency_s) if plan.latency_s else "–"
        table.add_row(name, term.where, term.what, format_seconds(term.seconds), share, _causes(term.causes))
    yield table
    if not plan.is_chain:
        yield Text("parties work at the same time: terms overlap and need not add up to the latency")
    yield Text(proof_line(plan), style="bold")
    if plan.problem.objective != "latency":
        busiest = list(explanation.busy.items())[:3]
        yield Text("busy per request: " + ", ".join(f"{who} {format_seconds(seconds)}" for who, seconds in busiest))
    for name, energy in explanation.energy.items():
        parts = ", ".join(f"{key} {value:.4g} J" for key, value in asdict(energy).items() if value)
        if parts:
            yield Text(f"energy of {name}: {parts}")
    yield from map(Text, _price_lines(explanation))


def _causes(causes: dict[str, float]) -> str:
    named = sorted(((seconds, name) for name, seconds in causes.items() if seconds > 0), reverse=True)
    return ", ".join(f"{name} {format_seconds(seconds)}" for seconds, name in named)


def _price_lines(explanation: Explanation) -> Iterator[str]:
    problem = explanation.plan.problem
    if not explanation.prices and not explanation.missed:
        yield "no limit binds: no more memory, faster link or looser limit, one at a time, makes a better plan"
    for price in explanation.prices or ():
        gain = amount(-price.gain, problem, signed=True) if price.gain else "nothing yet"
        line = f"{price.change.what}: {gain}"
        if price.lifted is not None and price.lifted < price.after - 1e-9 * abs(price.after):
            line += f" ({amount(price.lifted - price.before, problem, signed=True)} without this limit)"
        yield line if price.proven else f"{line}, found in the time and not proven"
    if explanation.missed:
        yield f"not looked at in the time: {', '.join(explanation.missed)} (--time-limit)"


def _answer_lines(answer: Answer, plan: Plan) -> Iterator[RenderableType]:
    problem = plan.problem
    if answer.granted:
        yield Text(f"{answer.question}: the plan does so already")
    elif answer.plan is None:
        yield Text(f"{answer.question}: {'impossible; ' if answer.proven else ''}{answer.broken}")
    else:
        price = amount(answer.price, problem, signed=True) if answer.price else "as good"
        figures = f"{amount(answer.plan.objective, problem)} instead of {amount(plan.objective, problem)}"
        yield Text(f"{answer.question}: {price} ({figures}{'' if answer.proven else ', not proven'})", style="bold")
        table = new_table("", ">#", "device", "variant", "elements", ">compute", ">receive")
        for stage in answer.plan.stages:
            table.add_row(
                str(stage.index), stage.device, stage.variant or "", f"{stage.elements} ({stage.start}:{stage.stop})",
                format_seconds(stage.compute_s), format_seconds(stage.transfer_s),
            )  # fmt: skip
        yield table


def difference_document(difference: Difference) -> dict[str, Any]:
    """Return what ``edgeopt diff --json`` prints."""
    return plain(
        {
            "kind": difference.kind,
            "figures": [{**asdict(figure), "change": figure.change} for figure in difference.figures],
            "moves": [asdict(move) for move in difference.moves],
            "problem": [
                {"field": field, "before": before, "after": after}
                for field, (before, after) in difference.problem.items()
            ],
            "notes": list(difference.notes),
        }
    )


def difference_view(difference: Difference) -> Iterable[RenderableType]:
    """Yield the figures that changed, what moved, and what was asked differently."""
    table = new_table("", "figure", ">before", ">after", ">change", ">")
    changed = [figure for figure in difference.figures if figure.before != figure.after]
    for figure in changed:
        table.add_row(figure.name, *_figure_cells(figure))
    if changed:
        yield table
    for move in difference.moves:
        yield Text(f"{move.elements} ({move.start}:{move.stop}): {move.before} → {move.after}")
    for field, (before, after) in difference.problem.items():
        yield Text(f"{field}: {_stated(before)} → {_stated(after)}")
    for note in difference.notes:
        yield Text(f"note: {note}")
    if not (changed or difference.moves or difference.problem or difference.notes):
        yield Text("no difference")


def _figure_cells(figure: Figure) -> list[str]:
    def cell(value: float | None, signed: bool = False) -> str:
        if value is None:
            return "–"
        sign = "+" if signed and value > 0 else ""
        if figure.name.endswith("_bytes"):
            return sign + format_bytes(value)
        return sign + format_seconds(value) if _is_duration(figure) else short(value, signed)

    change = figure.change
    relative = ""
    if change is not None and figure.before:
        relative = f"{100 * change / abs(figure.before):+.3g} %"
    if change is not None and figure.noise and abs(change) <= figure.noise:
        relative += " within the spread"
    return [cell(figure.before), cell(figure.after), cell(change, True), relative.strip()]


def _is_duration(figure: Figure) -> bool:
    measured = " " in figure.name  # a stage or a transfer of a report
    return measured or (figure.name.endswith("_s") and not figure.name.endswith("_per_s"))


def _stated(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "not stated" if value is None else str(value)
