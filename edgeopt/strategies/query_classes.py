"""Classes of recorded queries: how often each arrives, and what it takes of every model on every device.

A class is what the trace calls one, or a bin of a router: one formulation for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.answering import Interval, accuracy_needed
from edgeopt.costs.memory import usable_bytes
from edgeopt.costs.routing import mixed_interval
from edgeopt.errors import Finding, InputError
from edgeopt.profiles.library import known_or_near
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies.answer_pool import AnswerPool, Entry
from edgeopt.strategies.router_bins import RouterBins
from edgeopt_solvers import placement as family

__all__ = ["QueryClasses"]

Array = NDArray[np.float64]


class _Pool(AnswerPool):
    """Every model on every device: one that is slower than another still takes load off it."""

    def _worth_while(self, entries: list[Entry]) -> list[Entry]:
        return entries


class QueryClasses:
    """A problem's classes of queries, C of them, M models and V devices; ``router`` tells them apart, if it is given.

    Raises
    ------
    InputError
        The trace cannot be read, a class has no query of a split, or a floor is of no class.
    """

    def __init__(self, problem: Problem) -> None:
        assert isinstance(problem.workload, TextWorkload)
        self.pool, self.problem, self.load = _Pool(problem), problem, problem.workload
        self.router: RouterBins | None = None
        if problem.constraints.routing.by == "router":
            self.router = RouterBins(self.pool)
            self.names = self.router.names
            self.members = [np.flatnonzero(self.router.bins == k) for k in range(len(self.names))]
            self._slow_source(1 - self.router.load)
            return
        held_out = self.pool.trace.part("held-out")
        self.names = sorted({str(name) for name in (*self.pool.fit.classes, *held_out.classes)})
        self.members = [np.flatnonzero(self.pool.fit.classes == name) for name in self.names]
        self.num_held_out = [int((held_out.classes == name).sum()) for name in self.names]
        self._check()

    def _slow_source(self, rest: float) -> None:
        """Let the source compute answers in the rest of its time, that scoring leaves."""
        self.pool.entries = [
            replace(entry, busy_s=entry.busy_s / rest) if entry.device == self.pool.source else entry
            for entry in self.pool.entries
        ]

    def _check(self) -> None:
        findings = []
        for name, members, others in zip(self.names, self.members, self.num_held_out, strict=True):
            for split, count in (("fit", len(members)), ("held-out", others)):
                if not count:
                    message = f"class '{name}' has no query of the split '{split}'"
                    findings.append(Finding("model.answers.trace", message, "record some, or drop the class"))
        limits = self.problem.constraints
        for name in limits.routing.accuracy:
            if name not in self.names:
                message, mend = f"there is no class '{name}' in the recorded answers", known_or_near(name, self.names)
                findings.append(Finding(f"constraints.routing.accuracy.{name}", message, mend))
        if limits.routing.accuracy and limits.accuracy is not None:
            message = "is given beside floors of classes (constraints.routing.accuracy)"
            findings.append(Finding("constraints.accuracy", message, "keep one of them"))
        if findings:
            raise InputError(findings)

    @property
    def rate(self) -> float:
        """Queries per second of all classes."""
        assert self.load.requests_per_s is not None
        return self.load.requests_per_s

    @property
    def shares(self) -> Array:
        """Part of all queries that each class is, (C,)."""
        counts = np.array([len(members) for members in self.members], float)
        return counts / counts.sum()

    @cached_property
    def right(self) -> Array:
        """Recorded accuracy of each model in each class, (C, M)."""
        return np.stack([self.pool.fit.correct[members].mean(axis=0) for members in self.members])

    def table(self, values: Callable[[Entry], Array]) -> Array:
        """Means over each class of what an entry has for each query, (C, M, V); ``inf`` where there is no entry."""
        shape = (len(self.names), len(self.pool.trace.models), len(self.problem.devices))
        found = np.full(shape, np.inf)
        for entry in self.pool.entries:
            each = values(entry)
            found[:, entry.model, entry.device] = [each[members].mean() for members in self.members]
        return found

    def interval(self, right: Array) -> Interval:
        """Accuracy of a run on other queries, from the part of each class's recorded queries that is answered right.

        A run draws classes by their shares, as recorded. Of bins it only knows when queries come, so that their shares
        vary as well: the mixture is one class.
        """
        requests = self.load.requests
        if self.router is None:
            counts = [len(members) for members in self.members]
            return mixed_interval(right, self.shares, counts, self.num_held_out, requests)
        whole = np.array([float(self.shares @ right)])
        return mixed_interval(whole, np.ones(1), [len(self.pool.fit)], [self.pool.num_held_out], requests)

    def instance(self) -> family.Serving:
        """Return the arrays."""
        limits, pool, router = self.problem.constraints, self.pool, self.router
        before_s = 0.0 if router is None else router.score_s + router.waiting_s
        floor: float | Array | None = None
        if limits.accuracy is not None:
            floor = min(1.0, accuracy_needed(limits.accuracy, len(pool.fit), pool.num_held_out))
        elif limits.routing.accuracy:
            floor = np.zeros(len(self.names))
            for c, name in enumerate(self.names):
                if name in limits.routing.accuracy:
                    counts = len(self.members[c]), self.num_held_out[c]
                    floor[c] = min(1.0, accuracy_needed(limits.routing.accuracy[name], *counts))
        return family.Serving(
            arrival_per_s=self.rate * self.shares,
            service_s=self.table(lambda entry: entry.busy_s),
            square_s2=self.table(lambda entry: entry.busy_s**2),
            network_s=self.table(lambda entry: before_s + entry.there_s + entry.back_s),
            accuracy=self.right,
            min_accuracy=floor,
            max_load=limits.routing.max_load,
            model_bytes=np.array([passes.memory_bytes for passes in pool.passes]),
            memory_bytes=np.array([usable_bytes(device) for device in self.problem.devices]),
        )

    def solution(self, decisions: dict[str, Any]) -> family.ServingSolution:
        """Read fractions by class: model, device and part of each way.

        Raises
        ------
        ValueError
            They are no fractions of these classes, models and devices.
        """
        models, devices = self.pool.trace.models, [device.name for device in self.problem.devices]
        fractions = np.zeros((len(self.names), len(models), len(devices)))
        given = decisions["fractions"]
        if not isinstance(given, dict) or sorted(given) != self.names:
            raise ValueError(f"decisions.fractions is not by class ({', '.join(self.names)})")
        for c, name in enumerate(self.names):
            for way in given[name]:
                m, v = models.index(way["model"]), devices.index(way["device"])
                fractions[c, m, v] += float(way["fraction"])
        return family.ServingSolution(fractions, (fractions > 0).any(axis=0))
