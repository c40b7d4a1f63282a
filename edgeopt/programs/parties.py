"""Computations whose parts talk freely: every process plays its part and says what it wants to whom it wants.

A chain's stages follow each other (:class:`edgeopt.programs.base.Program`). Where parts work at the same time or decide
on the way who is asked next (patches, drafts, cascades, experts) each process has :meth:`PartyProgram.play` and
:class:`Links` to all others. Tensors of any shape pass; what a party sends it may change afterwards.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from edgeopt.plan import Plan

__all__ = ["Links", "PartyProgram", "check_message", "rehearse"]

#: Seconds that a rehearsed party waits for a message before it says what it waits for.
_PATIENCE_S = 60.0

#: Seconds after which links that cannot tell whether a message has come let their caller look.
_NAP_S = 1e-3


class Links(ABC):
    """The ways of one process to all others of its run.

    Messages of one party to another arrive in the order in which they were sent. A party may send to itself.

    Attributes
    ----------
    rank
        Of this process; ranks and their devices are those of :attr:`edgeopt.executor.layout.Layout.hosts`, and rank 0
        is the source.
    """

    rank: int

    @abstractmethod
    def send(self, to: int, tensors: Sequence[torch.Tensor], label: str = "") -> None:
        """Hand a message over; it travels while the caller goes on, so two parties may both send at once.

        Parameters
        ----------
        to
            Rank of the receiver.
        tensors
            Of any device, shape and dtype; as many as are wanted, none too.
        label
            What it is for, as the plan's transfers call it (``purpose``); reports sum by it.

        Raises
        ------
        ValueError
            Larger than the program's ``max_message_bytes``.
        """

    @abstractmethod
    def receive(self, source: int) -> list[torch.Tensor]:
        """Wait for the next message of a party; its tensors are on the CPU and the caller's own."""

    @abstractmethod
    def poll(self, source: int) -> list[torch.Tensor] | None:
        """Return the next message of a party if it has arrived, ``None`` at once if it has not."""

    def await_any(self, timeout_s: float) -> None:
        """Sleep until a message of any party is there to be polled, for ``timeout_s`` at most; by one thread alone.

        It may return early: poll, and call it again.
        """
        time.sleep(min(timeout_s, _NAP_S))

    @abstractmethod
    @contextmanager
    def computing(self, stage: int, round_index: int = 0) -> Iterator[None]:
        """Time the computing inside the ``with`` block as part of ``plan.stages[stage]``, and slow it down where asked.

        No message may be received inside: waiting is not computing.

        Parameters
        ----------
        round_index
            What reports tell apart within a stage: 0 is the prefill of a language model, or the first step.
        """

    def answered(self, query: int, arrived_s: float, answered_s: float) -> None:  # noqa: B027  (a rehearsal keeps none)
        """Note, at the source of a stream of requests, when one arrived and when it was answered (monotonic clock)."""


class PartyProgram(ABC):
    """One process's part in a plan.

    Parameters
    ----------
    plan
        Architecture, workload and decisions all come from here.
    stages
        Indices of ``plan.stages`` hosted by this process; nothing else is loaded. Empty for a source that only feeds
        and collects.

    Attributes
    ----------
    max_message_bytes
        Most bytes of tensors in one message; larger ones are refused before memory is taken for them.
    """

    max_message_bytes: int = 64 << 20

    def __init__(self, plan: Plan, stages: Sequence[int]) -> None:
        self.plan = plan
        self.stages = tuple(stages)

    @abstractmethod
    def request(self, seed: int) -> list[torch.Tensor]:
        """Make the input that the source holds (prompt tokens, class labels)."""

    @abstractmethod
    def play(self, links: Links, inputs: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        """Play this process's part in one request.

        Parameters
        ----------
        inputs
            The request, on rank 0; ``None`` elsewhere.

        Returns
        -------
        list of torch.Tensor or None
            The result, on rank 0; ``None`` elsewhere.
        """

    @abstractmethod
    def begin(self) -> None:
        """Forget the previous request (caches, solver state)."""

    def measures(self, result: Sequence[torch.Tensor]) -> dict[str, float]:
        """Say what a result is worth beside its time, by name as in ``plan.metrics``; asked at the source."""
        return {}


def check_message(tensors: Sequence[torch.Tensor], label: str, limit: int) -> int:
    """Return the bytes of a message.

    Raises
    ------
    ValueError
        There are more than ``limit``.
    """
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if num_bytes > limit:
        name = f"message '{label}'" if label else "message"
        raise ValueError(f"a {name} of {num_bytes} bytes is above the program's max_message_bytes of {limit}")
    return num_bytes


def rehearse(plan: Plan, seed: int, build: Callable[[Plan, Sequence[int]], Any] | None = None) -> list[torch.Tensor]:
    """Play all parts as threads of this process, with links in memory.

    Parameters
    ----------
    build
        Makes a party; ``None``: the program of the plan's strategy.

    Returns
    -------
    list of torch.Tensor
        The result at the source.

    Raises
    ------
    Exception
        What the first party that failed raised.
    """
    from edgeopt.executor.layout import Layout

    if build is None:
        from edgeopt.programs import build
    hosts = Layout.of(plan).hosts
    parties: list[PartyProgram] = [build(plan, host.stages) for host in hosts]
    room = _Room()
    results: list[list[torch.Tensor] | None] = [None] * len(hosts)

    def play(rank: int) -> None:
        party = parties[rank]
        try:
            with torch.inference_mode():
                party.begin()
                inputs = party.request(seed) if rank == 0 else None
                results[rank] = party.play(_InMemory(rank, len(hosts), room, party.max_message_bytes), inputs)
        except BaseException as error:  # raised again by the caller's thread
            room.fail(error)

    threads = [threading.Thread(target=play, args=(rank,), daemon=True) for rank in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if room.failure is not None:
        raise room.failure
    if results[0] is None:
        raise ValueError(f"{type(parties[0]).__name__} returned no result on rank 0")
    return results[0]


class _LeftError(Exception):
    """Another party failed."""


class _Room:
    """Queues between all parties; a failure of one ends the waiting of all."""

    def __init__(self) -> None:
        self.queues: dict[tuple[int, int], queue.SimpleQueue[list[torch.Tensor]]] = defaultdict(queue.SimpleQueue)
        self.news: dict[int, threading.Event] = defaultdict(threading.Event)
        self.failure: BaseException | None = None
        self._lock = threading.Lock()

    def way(self, source: int, to: int) -> queue.SimpleQueue[list[torch.Tensor]]:
        """Return the queue from one party to another."""
        with self._lock:
            return self.queues[source, to]

    def told(self, rank: int) -> threading.Event:
        """Return what is set when a message for a party was put into a queue."""
        with self._lock:
            return self.news[rank]

    def fail(self, error: BaseException) -> None:
        """Note the first failure."""
        with self._lock:
            if self.failure is None and not isinstance(error, _LeftError):
                self.failure = error


class _InMemory(Links):
    def __init__(self, rank: int, size: int, room: _Room, limit: int) -> None:
        self.rank, self._size, self._room, self._limit = rank, size, room, limit

    def send(self, to: int, tensors: Sequence[torch.Tensor], label: str = "") -> None:
        if not 0 <= to < self._size:
            raise ValueError(f"there is no rank {to}, ranks are 0 to {self._size - 1}")
        check_message(tensors, label, self._limit)
        self._room.way(self.rank, to).put([tensor.detach().to("cpu", copy=True).contiguous() for tensor in tensors])
        self._room.told(to).set()

    def receive(self, source: int) -> list[torch.Tensor]:
        waited_s = 0.0
        while waited_s < _PATIENCE_S:
            try:
                return self._room.way(source, self.rank).get(timeout=0.05)
            except queue.Empty:
                waited_s += 0.05
                if self._room.failure is not None:
                    raise _LeftError from None
        raise TimeoutError(f"rank {self.rank} waited {_PATIENCE_S:g} s for a message of rank {source}")

    def poll(self, source: int) -> list[torch.Tensor] | None:
        if self._room.failure is not None:
            raise _LeftError
        try:
            return self._room.way(source, self.rank).get_nowait()
        except queue.Empty:
            return None

    def await_any(self, timeout_s: float) -> None:
        told = self._room.told(self.rank)
        told.wait(timeout_s)
        told.clear()  # before queues are looked at, so that nothing put into one later is missed

    @contextmanager
    def computing(self, stage: int, round_index: int = 0) -> Iterator[None]:
        yield
