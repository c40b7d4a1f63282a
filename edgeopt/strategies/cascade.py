"""A cascade of language models: a small one answers first, and a larger one is asked where it was not confident enough.

Models, their devices and the thresholds are decided together from recorded answers, at the least mean time that keeps
the accuracy. The floor is kept with a margin for queries that were not recorded
(:func:`edgeopt.costs.answering.accuracy_needed`). Where queries arrive by themselves, no device may be busy for more
than :data:`MOST_BUSY` of the time, and ``latency_s`` holds what they wait (:func:`~edgeopt.costs.answering.waiting_s`);
the solver does not weigh waiting.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import edgeopt
from edgeopt.costs.answering import Stream, accuracy_interval, accuracy_needed, waiting_s
from edgeopt.plan import Plan, Stage, Transfer
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies import refusals
from edgeopt.strategies.answer_pool import AnswerPool, Entry
from edgeopt.strategies.base import Strategy
from edgeopt.strategies.pipeline import basis_notes
from edgeopt.strategies.timeline import Bar, lay_out, link_lane
from edgeopt_solvers import Result
from edgeopt_solvers import policy as family

__all__ = ["MOST_BUSY", "Cascade"]

#: Fraction of the time that a device may compute where queries arrive by themselves.
MOST_BUSY = 0.95

#: Thresholds per model that are tried: quantiles of its confidence.
_LEVELS = 32


class Cascade(Strategy):
    """Plan which models are asked in turn, on which devices, and how confident each must be to be the last."""

    name: ClassVar[str] = "cascade"

    def unfit(self, problem: Problem) -> str | None:
        """Refuse models without recorded answers, and what their trace says nothing of."""
        model, load, limits = problem.model, problem.workload, problem.constraints
        if not (isinstance(model, CausalLM) and isinstance(load, TextWorkload)):
            return f"cascade asks language models; {model.name!r} is a {model.family} model"
        if model.answers is None or not model.drafts:
            return f"cascade decides from recorded answers of smaller models, and {model.name!r} has none (answers)"
        if limits.accuracy is None:
            return "cascade trades right answers for time, and nothing says how many are needed (constraints.accuracy)"
        if load.requests_per_s is not None and problem.strategy != self.name:
            return (
                "cascade does not weigh waiting, so that its objective is no match for others where requests arrive by "
                "themselves (workload.requests_per_s): write `strategy: cascade` to plan one all the same"
            )
        if limits.period:
            return "cascade bounds the mean time of an answer, not how often one comes (constraints.period)"
        return (
            refusals.of_batches(self.name, load)
            or refusals.of_goals(self.name, problem, "latency")
            or refusals.of_stages(self.name, problem, counts=True)
            or refusals.of_reserved_media(self.name, problem)
        )

    def build(self, problem: Problem) -> family.Cascade:
        """Build the policy's arrays: an entry of the pool for each model on each device that is worth while.

        Raises
        ------
        InputError
            The trace does not fit the family or the workload.
        NoPlanError
            No model fits any device.
        """
        return _instance(AnswerPool(problem))

    def solution(self, plan: Plan) -> family.CascadeSolution:
        """Return models, devices and thresholds that the plan names."""
        pool, decisions = AnswerPool(plan.problem), plan.decisions
        models, devices, thresholds = (decisions[key] for key in ("models", "devices", "thresholds"))
        if not (isinstance(models, list) and isinstance(devices, list) and isinstance(thresholds, list)):
            raise ValueError("decisions models, devices and thresholds are not three lists")
        places = [pool.place(str(model), str(device)) for model, device in zip(models, devices, strict=True)]
        return family.CascadeSolution(tuple(places), tuple(thresholds))  # type: ignore[arg-type]

    def plan(self, problem: Problem, instance: family.Cascade, result: Result) -> Plan:
        """Write a stage for each model that is asked, and what to expect of accuracy and time."""
        chosen = _Chosen(AnswerPool(problem), instance, result.solution)
        load = problem.workload
        assert isinstance(load, TextWorkload)
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
            latency_s=chosen.latency_s,
            throughput_per_s=load.requests_per_s or 1.0 / chosen.latency_s,
            metrics=chosen.metrics(),
            decisions=chosen.decisions(),
            stages=chosen.stages(),
            transfers=chosen.transfers(),
            timeline=lay_out(chosen.bars()),
            notes=chosen.notes(),
        )

    def describe(self, problem: Problem) -> Callable[[str], str]:
        """Put the problem's words into a message: its field for the floor, names for devices, the rate."""
        names = super().describe(problem)
        floor, rate = problem.constraints.accuracy, getattr(problem.workload, "requests_per_s", None)

        def words(message: str) -> str:
            message = names(message)
            asked = (
                rf"constraints.accuracy is {floor:g}, which needs \1 on the queries that are decided from (for others "
                "to keep it in 95 of 100 cases)"
            )
            message = re.sub(r"\bmin_accuracy is ([\d.]+(?:e-?\d+)?)", asked, message)
            if "constraints.accuracy" in message:
                message += "; lower it, or record more queries"
            if rate:
                message = message.replace(
                    "max_busy_s is", f"workload.requests_per_s is {rate:g}, which leaves a device per query"
                )
            return message.replace("max_latency_s is", "constraints.deadline, kept on average, is")

        return words


def _instance(pool: AnswerPool) -> family.Cascade:
    limits, entries, fit = pool.problem.constraints, pool.entries, pool.fit
    models = [entry.model for entry in entries]
    most = len(fit.models) if limits.max_stages is None else min(limits.max_stages, len(fit.models))
    rate, needed = pool.load.requests_per_s, None
    if limits.accuracy is not None:
        needed = min(1.0, accuracy_needed(limits.accuracy, len(fit), pool.num_held_out))
    return family.Cascade(
        confidence=fit.confidence[:, models],
        correct=fit.correct[:, models],
        seconds=np.stack([entry.seconds for entry in entries], axis=1),
        min_accuracy=needed,
        max_latency_s=limits.deadline,
        grid=[_thresholds(pool, m) for m in models],
        max_models=most,
        device=np.array([entry.device for entry in entries]),
        busy_s=np.stack([entry.busy_s for entry in entries], axis=1),
        max_busy_s=None if rate is None else MOST_BUSY / rate,
        conflicts=pool.conflicts(),
    )


def _thresholds(pool: AnswerPool, model: int) -> list[float]:
    """Thresholds that a model may have: the one that the problem names, or quantiles of its confidence."""
    given = pool.problem.constraints.thresholds
    if (name := pool.trace.models[model]) in given:
        return [given[name]]
    confidence = np.sort(pool.fit.confidence[:, model])
    ranks = np.arange(1, _LEVELS) * len(confidence) // _LEVELS
    return [float(value) for value in np.unique(confidence[ranks])]


@dataclass(frozen=True)
class _Chosen:
    """One solution and what it comes to."""

    pool: AnswerPool
    instance: family.Cascade
    solution: family.CascadeSolution

    @cached_property
    def entries(self) -> list[Entry]:
        """Those that are asked, in turn."""
        return [self.pool.entries[k] for k in self.solution.models]

    @cached_property
    def asked(self) -> list[NDArray[np.bool_]]:
        """For each of them, which of the fit queries ask it."""
        going, found = np.ones(len(self.pool.fit), dtype=bool), []
        for k, entry in enumerate(self.entries):
            found.append(going)
            if k < len(self.solution.thresholds):
                going = going & (self.pool.fit.confidence[:, entry.model] < self.solution.thresholds[k])
        return found

    @property
    def num_right(self) -> float:
        """Fit queries that end at a right answer."""
        stops = [a & ~b for a, b in zip(self.asked, [*self.asked[1:], np.zeros_like(self.asked[0])], strict=True)]
        correct = self.pool.fit.correct
        return float(sum(correct[s, e.model].sum() for s, e in zip(stops, self.entries, strict=True)))

    @cached_property
    def waiting(self) -> dict[int, float]:
        """Mean seconds in line by device; nobody waits where one query follows the other's answer."""
        rate = self.pool.load.requests_per_s
        if rate is None:
            return {entry.device: 0.0 for entry in self.entries}
        return waiting_s([self._stream(k) for k in range(len(self.entries))], rate)

    def _stream(self, k: int) -> Stream:
        entry, asked = self.entries[k], self.asked[k]
        busy = entry.busy_s[asked] if asked.any() else np.zeros(1)
        return Stream(entry.device, k - 1, float(asked.mean()), float(busy.mean()), float((busy**2).mean()))

    @cached_property
    def latency_s(self) -> float:
        """Mean seconds from a query's arrival to its answer."""
        return sum(
            float((entry.seconds * asked).mean()) + float(asked.mean()) * self.waiting[entry.device]
            for entry, asked in zip(self.entries, self.asked, strict=True)
        )

    def metrics(self) -> dict[str, float]:
        """Accuracy with its interval, how many queries are passed on, the load, and the largest model alone."""
        pool, count = self.pool, len(self.pool.fit)
        interval = accuracy_interval(self.num_right, count, pool.num_held_out)
        found = {"accuracy": interval.mean, "accuracy_low": interval.low, "accuracy_high": interval.high}
        found |= {f"passed_on_{k}": float(asked.mean()) for k, asked in enumerate(self.asked[1:], start=1)}
        if (rate := pool.load.requests_per_s) is not None:
            busy: dict[int, float] = {}
            for entry, asked in zip(self.entries, self.asked, strict=True):
                busy[entry.device] = busy.get(entry.device, 0.0) + rate * float((entry.busy_s * asked).mean())
            found["load"] = max(busy.values())
            found["waiting_s"] = sum(
                float(asked.mean()) * self.waiting[entry.device]
                for entry, asked in zip(self.entries, self.asked, strict=True)
            )
        largest = pool.order[-1]
        alone = [float(entry.seconds.mean()) for entry in pool.entries if entry.model == largest]
        if alone:
            found |= {"largest_alone_s": min(alone), "largest_accuracy": float(pool.fit.correct[:, largest].mean())}
        return found

    def decisions(self) -> dict[str, Any]:
        """Return what the plan decides, in names."""
        devices = self.pool.problem.devices
        return {
            "models": [self.pool.trace.models[entry.model] for entry in self.entries],
            "devices": [devices[entry.device].name for entry in self.entries],
            "thresholds": list(self.solution.thresholds),
        }

    def _words(self, k: int) -> str:
        name = self.pool.trace.models[self.entries[k].model]
        if k == len(self.solution.thresholds):
            return f"{name}, answers what is left" if k else f"{name}, answers everything"
        return f"{name}, asks on below {self.solution.thresholds[k]:.4g}"

    def stages(self) -> list[Stage]:
        """Return a stage per model; times and bytes are means over all queries, those that never get there too."""
        pool, found = self.pool, []
        for k, (entry, asked) in enumerate(zip(self.entries, self.asked, strict=True)):
            name, passes = pool.trace.models[entry.model], pool.passes[entry.model]
            remote = entry.device != pool.source
            found.append(
                Stage(
                    index=k,
                    device=pool.problem.devices[entry.device].name,
                    variant=None if name == pool.model.name else name,
                    start=0,
                    stop=len(passes.costs.layers),
                    elements=self._words(k),
                    compute_s=float((entry.busy_s * asked).mean()),
                    transfer_s=float((entry.there_s * asked).mean()) if remote else 0.0,
                    transfer_bytes=float((pool.prompt_bytes() * asked).mean()) if remote else 0.0,
                    memory_bytes=passes.memory_bytes,
                )
            )
        return found

    def transfers(self) -> list[Transfer]:
        """Questions and answers by pair of devices, means per query."""
        return self.pool.transfers(
            (entry, lambda values, asked=asked: float((values * asked).mean()))
            for entry, asked in zip(self.entries, self.asked, strict=True)
        )

    def bars(self) -> list[Bar]:
        """Return a mean query that every model is asked, with nobody in line."""
        pool, bars = self.pool, list[Bar]()
        names = [device.name for device in pool.problem.devices]
        for entry in self.entries:
            bars.append(Bar(names[entry.device], pool.trace.models[entry.model], float(entry.busy_s.mean())))
            if entry.device != pool.source:
                ends = names[pool.source], names[entry.device]
                bars.insert(-1, Bar(link_lane(*ends), "input", float(entry.there_s.mean())))
                bars.append(Bar(link_lane(*ends[::-1]), "output", float(entry.back_s.mean())))
        return bars

    def notes(self) -> list[str]:
        """Say where seconds and answers come from, how the floor is kept, and what the waiting assumes."""
        pool, limits = self.pool, self.pool.problem.constraints
        basis = {pool.problem.devices[entry.device].name: True for entry in self.entries}
        for entry in self.entries:
            basis[pool.problem.devices[entry.device].name] &= entry.measured
        assert pool.model.answers is not None
        notes = [*basis_notes(basis), f"answers: {pool.model.answers.source}"]
        assert limits.accuracy is not None
        count = f"{len(pool.fit)} queries, {pool.num_held_out} held out"
        notes.append(
            f"accuracy {limits.accuracy:g} is kept on other queries in 95 of 100 cases: it needs "
            f"{accuracy_needed(limits.accuracy, len(pool.fit), pool.num_held_out):.4g} on those decided from ({count})"
        )
        if limits.deadline is not None:
            notes.append("the deadline is kept on average, waiting aside")
        if pool.load.requests_per_s is not None:
            notes.append("waiting: a queue per device, first come first served; M/G/1 for the first model asked")
        notes.append("the timeline is that of a query which every model is asked")
        return notes
