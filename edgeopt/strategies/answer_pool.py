"""Which model may answer on which device, and what it takes there: the pool that a cascade chooses from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeopt.costs.answering import answer_s
from edgeopt.costs.drafting import ModelPasses, draft_model
from edgeopt.costs.links import waiting_links
from edgeopt.costs.memory import usable_bytes
from edgeopt.errors import Finding, InputError, NoPlanError
from edgeopt.plan import Transfer
from edgeopt.profiles.answers import Trace, model_names, read_answers
from edgeopt.profiles.library import known_or_near
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.strategies.chain import able_devices, source_index

__all__ = ["AnswerPool", "Entry"]

#: Bytes of a token id, of a message's head (query and stage), and of a confidence.
_TOKEN_BYTES, _HEAD_BYTES, _CONFIDENCE_BYTES = 8, 16, 8

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """A model on a device, over the N queries that are decided from.

    Attributes
    ----------
    model, device
        Indices into the trace's models and the problem's devices.
    busy_s, there_s, back_s : (N,)
        Seconds of computing, of sending the query there and its answer back.
    measured
        Whether the computing rests on measurements.
    """

    model: int
    device: int
    busy_s: Array
    there_s: Array
    back_s: Array
    measured: bool

    @property
    def seconds(self) -> Array:
        """From the question to the answer at the source, with nobody in line."""
        return self.there_s + self.busy_s + self.back_s


class AnswerPool:
    """Entries of a problem, models of growing cost first; those that another would always be better than are left out.

    The source asks a party, which answers with its confidence, and decides whether to ask the next: what a model takes
    depends on its own device alone.

    Raises
    ------
    InputError
        The trace cannot be read, a threshold is of no model, or queries or answers are longer than the workload's.
    NoPlanError
        No model fits a device that may compute and that the source has a link with.
    """

    def __init__(self, problem: Problem) -> None:
        assert isinstance(problem.model, CausalLM)
        assert isinstance(problem.workload, TextWorkload)
        self.problem, self.model, self.load = problem, problem.model, problem.workload
        self.trace = read_answers(self.model)
        self.fit: Trace = self.trace.part("fit")
        self.prompt_tokens, self.tokens = self._lengths()
        self._check_thresholds()
        self.passes = [ModelPasses(self._model_of(name), self.load) for name in self.trace.models]
        self.source = source_index(problem)
        self.links = waiting_links(problem.network, problem.devices)
        self.entries = self._entries()

    @property
    def num_held_out(self) -> int:
        """Queries that nothing is decided from."""
        return int(self.trace.held_out.sum())

    @cached_property
    def order(self) -> list[int]:
        """Models of the trace by the arithmetic of a token."""
        work = [sum(layer.count * layer.flop_per_token for layer in passes.model.layers) for passes in self.passes]
        return sorted(range(len(work)), key=lambda m: work[m])

    def prompt_bytes(self) -> Array:
        """Bytes of asking each query, (N,)."""
        return _HEAD_BYTES + _TOKEN_BYTES * self.prompt_tokens.astype(float)

    def answer_bytes(self, model: int) -> Array:
        """Bytes of each answer with its confidence, (N,)."""
        return _HEAD_BYTES + _CONFIDENCE_BYTES + _TOKEN_BYTES * self.tokens[:, model].astype(float)

    def transfers(self, uses: Iterable[tuple[Entry, Callable[[Array], float]]]) -> list[Transfer]:
        """Questions and answers by pair of devices, means per query.

        ``uses`` has for each entry that is asked what makes values by query, (N,), a mean over all queries.
        """
        found = dict[tuple[str, int, int], list[float]]()
        for entry, mean in uses:
            if entry.device == self.source:
                continue
            for purpose, i, j, num_bytes, seconds in (
                ("input", self.source, entry.device, self.prompt_bytes(), entry.there_s),
                ("output", entry.device, self.source, self.answer_bytes(entry.model), entry.back_s),
            ):
                total = found.setdefault((purpose, i, j), [0.0, 0.0, 0.0])
                for n, values in enumerate((num_bytes, np.ones(len(num_bytes)), seconds)):
                    total[n] += mean(values)
        names = [device.name for device in self.problem.devices]
        rates = self.links.rate_bytes_per_s
        return [
            Transfer(
                purpose=purpose, source=names[i], destination=names[j], bytes=num_bytes, messages=messages,
                seconds=seconds, rate_bytes_per_s=float(rates[i, j]),
            )
            for (purpose, i, j), (num_bytes, messages, seconds) in found.items()
        ]  # fmt: skip

    def place(self, model: str, device: str) -> int:
        """Index of the entry of a model on a device.

        Raises
        ------
        ValueError
            There is none, or it was left out.
        """
        devices = [each.name for each in self.problem.devices]
        for k, entry in enumerate(self.entries):
            if (self.trace.models[entry.model], devices[entry.device]) == (model, device):
                return k
        raise ValueError(f"model {model!r} on device {device!r} is none of the choices")

    def conflicts(self) -> list[tuple[int, ...]]:
        """Sets of entries of which not all may be asked: the same model twice, or more than a memory holds."""
        pairs = [
            (i, j)
            for (i, a), (j, b) in itertools.combinations(enumerate(self.entries), 2)
            if a.model == b.model
        ]  # fmt: skip
        return pairs + list(self._too_large(pairs))

    def _too_large(self, pairs: list[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
        """Yield the smallest sets of entries that one memory does not hold."""
        found: list[set[int]] = [set(pair) for pair in pairs]
        for d, device in enumerate(self.problem.devices):
            here = [k for k, entry in enumerate(self.entries) if entry.device == d]
            for size in range(2, len(here) + 1):
                for chosen in itertools.combinations(here, size):
                    need = sum(self.passes[self.entries[k].model].memory_bytes for k in chosen)
                    if need > usable_bytes(device) and not any(known <= set(chosen) for known in found):
                        found.append(set(chosen))
                        yield chosen

    def _model_of(self, name: str) -> CausalLM:
        return self.model if name == self.model.name else draft_model(self.model, name)

    def _lengths(self) -> tuple[Ints, Ints]:
        """Tokens of queries and answers as recorded, or as the workload says."""
        count, trace, load = len(self.fit), self.trace, self.load
        if trace.prompt_tokens is None or trace.tokens is None:
            shape = (count, len(trace.models))
            return np.full(count, load.prompt_tokens), np.full(shape, load.new_tokens)
        asked = self.trace.splits != "train"
        findings = [
            Finding(
                f"workload.{field}", f"is {allowed}, the longest of the trace's {what} has {longest} tokens",
                f"raise it to {longest}",
            )
            for field, allowed, longest, what in (
                ("prompt_tokens", load.prompt_tokens, int(trace.prompt_tokens[asked].max()), "queries"),
                ("new_tokens", load.new_tokens, int(trace.tokens[asked].max()), "answers"),
            )
            if longest > allowed
        ]  # fmt: skip
        if findings:
            raise InputError(findings)
        assert self.fit.prompt_tokens is not None
        assert self.fit.tokens is not None
        return self.fit.prompt_tokens, self.fit.tokens

    def _check_thresholds(self) -> None:
        names = model_names(self.model)
        for name in self.problem.constraints.thresholds:
            if name not in names:
                message = f"there is no model '{name}' in the family of '{self.model.name}'"
                raise InputError(Finding(f"constraints.thresholds.{name}", message, known_or_near(name, names)))

    def _entries(self) -> list[Entry]:
        able = able_devices(self.problem)
        found = []
        for m in self.order:
            own = [
                entry
                for d, can in enumerate(able)
                if can and self.passes[m].memory_bytes <= usable_bytes(self.problem.devices[d])
                if (entry := self._entry(m, d)) is not None
            ]
            found += self._worth_while(own)
        if not found:
            least = min(passes.memory_bytes for passes in self.passes)
            raise NoPlanError(
                f"no plan exists for {self.problem.name!r}: memory or links: the smallest model needs {least:.9g} "
                "bytes, and no device that may compute and has links with the source both ways holds it"
            )
        return found

    def _entry(self, m: int, d: int) -> Entry | None:
        """Return what a model takes on a device, ``None`` without links both ways."""
        out, home = self._link(self.source, d), self._link(d, self.source)
        if out is None or home is None:
            return None
        device = self.problem.devices[d]
        seconds, measured = answer_s(self.passes[m].model, self.load, device, self.prompt_tokens, self.tokens[:, m])
        there_s = out[0] + self.prompt_bytes() * out[1]
        return Entry(m, d, seconds, there_s, home[0] + self.answer_bytes(m) * home[1], measured)

    def _link(self, i: int, j: int) -> tuple[float, float] | None:
        """Latency, and seconds per byte."""
        if i == j:
            return 0.0, 0.0
        rate = float(self.links.rate_bytes_per_s[i, j])
        return (float(self.links.latency_s[i, j]), 1.0 / rate) if rate > 0 else None

    def _worth_while(self, entries: list[Entry]) -> list[Entry]:
        """Leave out devices that as many others as there are models are no worse than, for every query.

        A cascade has at most so many models, one on each device or several on one: among as many devices there is one
        that no other model of it uses, so that moving there costs nothing and always fits.
        """
        kept = []
        for k, entry in enumerate(entries):
            better = 0
            for j, other in enumerate(entries):
                if j == k:
                    continue
                worse = (other.seconds > entry.seconds).any() or (other.busy_s > entry.busy_s).any()
                same = (other.seconds == entry.seconds).all() and (other.busy_s == entry.busy_s).all()
                better += int(not worse and (not same or j < k))
            if better < len(self.passes):
                kept.append(entry)
        return kept
