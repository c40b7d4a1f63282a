"""Requests that arrive by themselves: released at their times, served first come first served, answered when done.

A stream of many requests is one request of the executor. The source releases each at its time, whether or not earlier
ones are answered; every process serves one at a time, in the order in which they reach it; and the source notes when
each has its answer. Who is asked first, and who next if an answer will not do, is the technique's business
(:data:`Onward`), so that a query may go to one model (``routing``) or through several (``cascade``).

A response time runs from the planned arrival to the answer at the source: a release that was late is part of it.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from edgeopt.profiles.problem import TextWorkload
from edgeopt.programs.parties import Links

__all__ = ["Answer", "Ask", "Interval", "Onward", "draw_stream", "mean_interval", "play_stream"]

#: Seconds that the source sleeps at most: a message ends its sleep, but not word that computing beside it failed.
_NAP_S = 0.05

#: Parts of a stream over whose means its confidence interval is taken: neighbours wait for the same queue.
_BATCHES = 20

#: Two-sided 95 % of Student's distribution by degrees of freedom 1 … 19.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ask:
    """What the source wants of whom: ``plan.stages[stage]``, which rank ``rank`` hosts, shall answer ``tensors``."""

    rank: int
    stage: int
    tensors: list[torch.Tensor]


Answer = Callable[[int, list[torch.Tensor]], list[torch.Tensor]]
"""Stage and question → its answer, computed by the process that hosts the stage."""

Onward = Callable[[int, int | None, list[torch.Tensor]], Ask | None]
"""Query, the stage that answered it last (``None``: it has just arrived) and what that said → whom to ask now.

``None``: the answer stands. Called by the source alone, in one thread.
"""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def draw_stream(
    load: TextWorkload, pools: Sequence[Sequence[int]], shares: Sequence[float], seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw requests: when each arrives, its class and which query of the class it is.

    Parameters
    ----------
    load
        With ``requests_per_s``, the mean rate, and ``requests``, how many.
    pools
        For each class the queries that requests are drawn from, by index.
    shares
        For each class how often it is drawn; any scale.

    Returns
    -------
    times, classes, queries : (requests,) float64, int64 and int64
        Seconds from the start, increasing (exponential gaps: a Poisson process).
    """
    assert load.requests_per_s is not None
    generator = torch.Generator().manual_seed(seed)
    count = load.requests
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    times = torch.cumsum(-torch.log1p(-uniform) / load.requests_per_s, 0)
    weights = torch.tensor(list(shares), dtype=torch.float64)
    classes = torch.multinomial(weights, count, replacement=True, generator=generator)
    places = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    queries = [pools[c][int(place * len(pools[c]))] for c, place in zip(classes.tolist(), places, strict=True)]
    return times, classes, torch.tensor(queries, dtype=torch.int64)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of values in the order in which they came, with its interval by means of batches.

    Response times of neighbours are alike, so that the interval rests on the means of consecutive parts.
    """
    count, mean = len(values), math.fsum(values) / len(values)
    batches = min(_BATCHES, count // 2)
    if batches < 2:
        return Interval(mean, -math.inf, math.inf)
    ends = [round(i * count / batches) for i in range(batches + 1)]
    means = [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
    middle = math.fsum(means) / batches
    variance = math.fsum((each - middle) ** 2 for each in means) / (batches - 1)
    half = _STUDENT[batches - 2] * math.sqrt(variance / batches)
    return Interval(mean, mean - half, mean + half)


def play_stream(
    links: Links,
    num_ranks: int,
    answer: Answer,
    times: torch.Tensor | None = None,
    onward: Onward | None = None,
    *,
    hosts: bool = True,
    one_by_one: bool = False,
) -> None:
    """Play one process's part in a stream until its last request is answered.

    Parameters
    ----------
    num_ranks
        Processes of the run.
    answer
        Answers what a stage of this process is asked.
    times, onward
        On rank 0: when requests arrive, and whom each goes to.
    hosts
        Whether this process hosts stages; a source that does not only releases and collects.
    one_by_one
        Release each request when the one before is answered, whatever ``times`` say.
    """
    if links.rank != 0:
        _serve(links, answer, iter(lambda: links.receive(0), []))
        return
    assert times is not None
    assert onward is not None
    source = _Source(links, num_ranks, times.tolist(), onward, one_by_one)
    if not hosts:
        source.run()
    else:
        source.run_beside(answer)


def _serve(links: Links, answer: Answer, questions: Iterator[list[torch.Tensor]]) -> None:
    """Answer one question after the other."""
    for head, *tensors in questions:
        query, stage = head.tolist()
        with links.computing(stage, query):
            said = answer(stage, tensors)
        links.send(0, [head, *said], "output")


@dataclass(slots=True)
class _Source:
    """Releases and collects; of its own stages' questions it hears through a message to itself."""

    links: Links
    num_ranks: int
    times: list[float]
    onward: Onward
    one_by_one: bool = False
    over: threading.Event = field(default_factory=threading.Event)
    failure: list[BaseException] = field(default_factory=list)
    own: queue.SimpleQueue[list[torch.Tensor]] = field(default_factory=queue.SimpleQueue)

    def run(self) -> None:
        """Release every request when its time has come, and take answers as they arrive."""
        start, released, answered, count = time.monotonic(), 0, 0, len(self.times)
        while answered < count and not self.over.is_set():
            passed = time.monotonic() - start
            while released < count and (released == answered if self.one_by_one else self.times[released] <= passed):
                if self.one_by_one:
                    self.times[released] = passed
                self._ask(released, None, [])
                released += 1
            for rank in range(self.num_ranks):
                while (message := self.links.poll(rank)) is not None:
                    head, *said = message
                    query, stage = head.tolist()
                    if not self._ask(query, stage, said):
                        answered += 1
                        self.links.answered(query, start + self.times[query], time.monotonic())
            if answered < count and not (self.one_by_one and released == answered):
                due_s = _NAP_S
                if released < count and not self.one_by_one:
                    due_s = min(due_s, start + self.times[released] - time.monotonic())
                if due_s > 0:  # it computes beside this thread: looking for news again and again would slow it down
                    self.links.await_any(due_s)
        for rank in range(1, self.num_ranks):
            self.links.send(rank, [], "end")

    def run_beside(self, answer: Answer) -> None:
        """The same in a thread beside this one, which answers what this process's own stages are asked."""

        def run() -> None:
            try:
                self.run()
            except BaseException as error:  # raised again by the thread that computes
                self.failure.append(error)
            finally:
                self.own.put([])

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            _serve(self.links, answer, iter(self.own.get, []))
        finally:
            self.over.set()
            thread.join()
        if self.failure:
            raise self.failure[0]

    def _ask(self, query: int, stage: int | None, said: list[torch.Tensor]) -> bool:
        """Ask whoever is next; ``False``: nobody, the answer stands."""
        wanted = self.onward(query, stage, said)
        if wanted is None:
            return False
        message = [torch.tensor([query, wanted.stage]), *wanted.tensors]
        if wanted.rank == 0:
            self.own.put(message)
        else:
            self.links.send(wanted.rank, message, "input")
        return True
