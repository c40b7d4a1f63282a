"""Routing: queries that arrive by themselves are split among models on devices, so that nobody waits long.

Each class of queries is given, in fractions, to models on devices. Classes are those that the recorded answers name, or
bins of queries for which a learned router promises like gains (:mod:`edgeopt.strategies.router_bins`). A device serves
one query at a time in the order of arrival, and how long that takes varies with the query, so that each is an M/G/1
queue: means and mean squares of the seconds come from the recorded queries. The fractions, and which models a device
holds, are proven to make the mean response shortest (:class:`edgeopt_solvers.placement.Serving`). Floors on accuracy
are kept with a margin for queries that were not recorded (:func:`edgeopt.costs.answering.accuracy_needed`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import edgeopt
from edgeopt.costs.answering import accuracy_needed
from edgeopt.errors import InputError
from edgeopt.plan import Plan, Stage, Transfer
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies import refusals
from edgeopt.strategies.answer_pool import Entry
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.pipeline import basis_notes
from edgeopt.strategies.query_classes import QueryClasses
from edgeopt.strategies.timeline import Bar, lay_out, link_lane
from edgeopt_solvers import Result
from edgeopt_solvers import placement as family

__all__ = ["Routing"]

#: Fractions below this are rounding.
_TRACE = 1e-9

Array = NDArray[np.float64]


class Routing(Strategy):
    """Plan which part of each class of queries goes to which model on which device."""

    name: ClassVar[str] = "routing"
    proven: ClassVar[float] = 1e-6

    def unfit(self, problem: Problem) -> str | None:
        """Refuse models without recorded answers, requests that follow each other, and what its cost does not count."""
        model, load, limits = problem.model, problem.workload, problem.constraints
        if not (isinstance(model, CausalLM) and isinstance(load, TextWorkload)):
            return f"routing sends queries to language models; {model.name!r} is a {model.family} model"
        if model.answers is None:
            return f"routing decides from recorded answers by class of query, and {model.name!r} has none (answers)"
        if limits.routing.by == "router" and model.answers.router is None:
            return f"routing by router needs one, and {model.name!r} has none (answers.router; edgeopt profile router)"
        if load.requests_per_s is None:
            return "routing shares out queries that arrive by themselves, and none do (workload.requests_per_s)"
        if limits.deadline is not None or limits.period is not None:
            return "routing bounds no response time, only loads (constraints deadline, period; routing.max_load)"
        if limits.thresholds:
            return "routing passes no query on (constraints.thresholds is for cascade)"
        return (
            refusals.of_batches(self.name, load)
            or refusals.of_goals(self.name, problem, "latency")
            or refusals.of_stages(self.name, problem)
            or refusals.of_reserved_media(self.name, problem)
        )

    def build(self, problem: Problem) -> family.Serving:
        """Build the arrays of arrivals, service times, accuracies and memory.

        Raises
        ------
        InputError
            The trace does not fit the family or the workload, or a class is not in it.
        NoPlanError
            No model fits any device.
        """
        return QueryClasses(problem).instance()

    def solution(self, plan: Plan) -> family.ServingSolution:
        """Return the fractions that the plan names."""
        return QueryClasses(plan.problem).solution(plan.decisions)

    def plan(self, problem: Problem, instance: family.Serving, result: Result) -> Plan:
        """Write a stage for each model on each device that answers, and what to expect of times and accuracy."""
        chosen = _Chosen(QueryClasses(problem), instance, result.solution)
        return Plan(
            edgeopt_version=edgeopt.__version__,
            problem=problem,
            strategy=self.name,
            backend=result.backend,
            status=result.status.reason,
            objective=result.objective,
            bound=result.bound,
            gap=result.gap,
            runtime_s=result.runtime_s,
            latency_s=result.objective,
            throughput_per_s=chosen.classes.rate / max(chosen.busy.values()),
            metrics=chosen.metrics(),
            decisions=chosen.decisions(),
            stages=chosen.stages(),
            transfers=chosen.transfers(),
            timeline=lay_out(chosen.bars()),
            notes=chosen.notes(),
        )

    def describe(self, problem: Problem) -> Callable[[str], str]:
        """Put the names of classes, models and devices, and the problem's fields, into a message."""
        names = super().describe(problem)

        def words(message: str) -> str:
            try:
                classes = QueryClasses(problem)
            except InputError:
                return names(message)
            limits = problem.constraints
            floors = limits.routing.accuracy

            def floor(match: re.Match[str]) -> str:
                name = None if match[1] is None else classes.names[int(match[1])]
                asked, field = limits.accuracy, "constraints.accuracy"
                if name is not None:
                    asked, field = floors.get(name), f"constraints.routing.accuracy.{name}"
                return f"{field} is {asked or 0.0:g}, which needs {match[2]} on the queries that are decided from"

            message = re.sub(r"\bmin_accuracy(?:\[(\d+)\])? is ([\d.]+(?:e-?\d+)?)", floor, message)
            if "points too few" in message:
                message += "; lower it, or record more queries"
            message = message.replace("min_accuracy and load", "constraints.accuracy and load")
            message = message.replace("max_load is", "constraints.routing.max_load is")
            message = re.sub(
                r"arrivals of (\S+) of the (\S+) queries/s are the most that fit",
                r"workload.requests_per_s is \2, and \1 requests/s are the most that fit: lower it, or add a device",
                message,
            )
            for word, known in (("class", classes.names), ("model", classes.pool.trace.models)):
                message = re.sub(rf"\b{word} (\d+)\b", lambda m, w=word, k=known: f"{w} {k[int(m[1])]!r}", message)
            return names(message)

        return words


@dataclass(frozen=True)
class _Chosen:
    """One solution and what it comes to."""

    classes: QueryClasses
    instance: family.Serving
    solution: family.ServingSolution

    @cached_property
    def fractions(self) -> Array:
        """(C, M, V) without rounding."""
        part = np.where(self.solution.fractions > _TRACE, self.solution.fractions, 0.0)
        whole: Array = part / part.sum(axis=(1, 2), keepdims=True)
        return whole

    @cached_property
    def parts(self) -> Array:
        """Part of all queries that are of a class and go to a model on a device, (C, M, V)."""
        return self.classes.shares[:, None, None] * self.fractions

    @cached_property
    def used(self) -> list[Entry]:
        """Models on devices that answer something, device by device."""
        answering = self.parts.sum(axis=0) > 0
        found = [entry for entry in self.classes.pool.entries if answering[entry.model, entry.device]]
        return sorted(found, key=lambda entry: (entry.device, self.classes.pool.order.index(entry.model)))

    def mean(self, values: Array, entry: Entry) -> float:
        """Mean over all queries of what those that go to an entry have: values by fit query, zero for the others."""
        members = self.classes.members
        means = np.array([values[rows].mean() for rows in members])
        return float(self.parts[:, entry.model, entry.device] @ means)

    @cached_property
    def loads(self) -> dict[int, float]:
        """Device → fraction of the time that it computes answers, of the time that scoring leaves it."""
        found: dict[int, float] = {}
        for entry in self.used:
            load = self.classes.rate * self.mean(entry.busy_s, entry)
            found[entry.device] = found.get(entry.device, 0.0) + load
        return found

    @cached_property
    def busy(self) -> dict[int, float]:
        """Device → fraction of the time that it computes, scoring included."""
        router, source = self.classes.router, self.classes.pool.source
        if router is None:
            return self.loads
        return {**self.loads, source: router.load + (1 - router.load) * self.loads.get(source, 0.0)}

    def waiting_s(self) -> dict[int, float]:
        """Device → mean seconds in line, Q / (2 (1 - R))."""
        squares: dict[int, float] = {}
        for entry in self.used:
            square = self.classes.rate * self.mean(entry.busy_s**2, entry)
            squares[entry.device] = squares.get(entry.device, 0.0) + square
        return {d: square / (2 * (1 - self.loads[d])) for d, square in squares.items()}

    def metrics(self) -> dict[str, float]:
        """Accuracy with its interval, loads, and time in line."""
        classes = self.classes
        names = [device.name for device in classes.problem.devices]
        right = (self.parts.sum(axis=2) * classes.right).sum(axis=1)
        interval = classes.interval(right / classes.shares)
        found = {"accuracy": interval.mean, "accuracy_low": interval.low, "accuracy_high": interval.high}
        found["load"] = max(self.busy.values())
        found |= {f"load_{names[d]}": load for d, load in self.busy.items()}
        waiting = self.waiting_s()
        found["waiting_s"] = sum(
            float(self.parts[:, entry.model, entry.device].sum()) * waiting[entry.device] for entry in self.used
        )
        if classes.router is not None:
            found["waiting_s"] += classes.router.waiting_s
        return found

    def decisions(self) -> dict[str, Any]:
        """Return the fractions in names."""
        classes = self.classes
        models, devices = classes.pool.trace.models, classes.problem.devices
        ways: dict[str, list[dict[str, Any]]] = {}
        for c, name in enumerate(classes.names):
            ways[name] = [
                {
                    "model": models[entry.model],
                    "device": devices[entry.device].name,
                    "fraction": float(self.fractions[c, entry.model, entry.device]),
                }
                for entry in self.used
                if self.fractions[c, entry.model, entry.device] > 0
            ]
        found: dict[str, Any] = {"fractions": ways}
        found["shares"] = dict(zip(classes.names, classes.shares.tolist(), strict=True))
        if classes.router is not None:
            found["router"] = classes.router.decisions()
        return found

    def stages(self) -> list[Stage]:
        """Return a stage per model and device, before them the router's; times and bytes are means over all queries."""
        pool, found = self.classes.pool, []
        if (router := self.classes.router) is not None:
            found.append(
                Stage(
                    index=0, device=pool.problem.devices[pool.source].name, variant=None, start=0, stop=0,
                    elements="router, all queries", compute_s=float(router.score_s.mean()), transfer_s=0.0,
                    transfer_bytes=0.0, memory_bytes=router.memory_bytes,
                )
            )  # fmt: skip
        for k, entry in enumerate(self.used, start=len(found)):
            name, passes = pool.trace.models[entry.model], pool.passes[entry.model]
            remote = entry.device != pool.source
            part = float(self.parts[:, entry.model, entry.device].sum())
            found.append(
                Stage(
                    index=k,
                    device=pool.problem.devices[entry.device].name,
                    variant=None if name == pool.model.name else name,
                    start=0,
                    stop=len(passes.costs.layers),
                    elements=f"{name}, {100 * part:.3g} % of the queries",
                    compute_s=self.mean(entry.busy_s, entry),
                    transfer_s=self.mean(entry.there_s, entry) if remote else 0.0,
                    transfer_bytes=self.mean(pool.prompt_bytes(), entry) if remote else 0.0,
                    memory_bytes=passes.memory_bytes,
                )
            )
        return found

    def transfers(self) -> list[Transfer]:
        """Questions and answers by pair of devices, means per query."""
        return self.classes.pool.transfers((entry, partial(self.mean, entry=entry)) for entry in self.used)

    def bars(self) -> list[Bar]:
        """Return a mean query on the model that answers most of them, with nobody in line."""
        pool = self.classes.pool
        entry = max(self.used, key=lambda each: float(self.parts[:, each.model, each.device].sum()))
        part = float(self.parts[:, entry.model, entry.device].sum())
        names = [device.name for device in pool.problem.devices]
        router = self.classes.router
        first = [] if router is None else [Bar(names[pool.source], "router", float(router.score_s.mean()))]
        bars = [Bar(names[entry.device], pool.trace.models[entry.model], self.mean(entry.busy_s, entry) / part)]
        if entry.device == pool.source:
            return first + bars
        ends = names[pool.source], names[entry.device]
        there = Bar(link_lane(*ends), "input", self.mean(entry.there_s, entry) / part)
        return [*first, there, *bars, Bar(link_lane(*ends[::-1]), "output", self.mean(entry.back_s, entry) / part)]

    def notes(self) -> list[str]:
        """Say where seconds and answers come from, what is assumed of queues, and how floors are kept."""
        classes, pool = self.classes, self.classes.pool
        basis = {pool.problem.devices[entry.device].name: True for entry in self.used}
        for entry in self.used:
            basis[pool.problem.devices[entry.device].name] &= entry.measured
        assert pool.model.answers is not None
        notes = [
            *basis_notes(basis),
            f"answers: {pool.model.answers.source}",
            "queues: Poisson arrivals, one query at a time on each device, in order of arrival; service times vary as "
            "those of the recorded queries (M/G/1)",
        ]
        if (router := classes.router) is not None:
            assert pool.model.answers.router is not None
            source = pool.problem.devices[pool.source].name
            notes.append(f"router: {pool.model.answers.router.source}")
            notes.append(
                f"{source} scores every query ({'measured' if router.measured else 'roofline'}), which takes "
                f"{100 * router.load:.3g} % of its time; {len(classes.names)} bins of the recorded queries (split fit)"
            )
        limits = classes.problem.constraints
        floors = {"": limits.accuracy} if limits.accuracy is not None else limits.routing.accuracy
        for name, floor in floors.items():
            at = classes.names.index(name) if name else -1
            fit = len(classes.members[at]) if name else len(pool.fit)
            others = classes.num_held_out[at] if name else pool.num_held_out
            notes.append(
                f"accuracy {floor:g}{f' in class {name!r}' if name else ''} is kept on other queries in 95 of 100 "
                f"cases: it needs {min(1.0, accuracy_needed(floor, fit, others)):.4g} on those decided from "
                f"({fit} queries, {others} held out)"
            )
        notes.append("the timeline is that of a query to the model that answers most, with nobody in line")
        return notes
