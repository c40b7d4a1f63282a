"""Several requests in flight on one worker: whatever has arrived is computed, while other messages travel.

A request holds one of ``window`` slots from its start to its result, which is all the back-pressure there is: a slow
stage delays results, results free slots, slots admit requests. Every slot has a thread that waits for its next
message, so receives are posted before they are needed and transfers overlap with computing. The oldest request goes
first. What is computed does not depend on the order, since every slot has a state of its own.
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Sequence

import torch

from edgeopt.executor.layout import Boundary, Layout
from edgeopt.executor.pacing import computing_begins, rest
from edgeopt.executor.serve import Spans, arrivals, goes_on
from edgeopt.executor.state import State
from edgeopt.executor.transport import Transport
from edgeopt.programs.base import Program

__all__ = ["stream"]

_Message = tuple[int, Boundary, int, list[torch.Tensor]]


class _Stream:
    """One worker's part in a run of many requests."""

    def __init__(
        self,
        program: Program,
        layout: Layout,
        rank: int,
        transport: Transport | None,
        state: State,
        window: int,
        pace: float | None,
    ) -> None:
        self.layout, self.rank, self.transport, self.state, self.pace = layout, rank, transport, state, pace
        self.window, self.rounds, self.program = window, program.rounds, program
        self.programs = [program, *(program.fork() for _ in range(window - 1))]
        self.spans: dict[int, Spans] = {}
        self.begun: set[int] = set()
        self.arrived: queue.SimpleQueue[_Message | BaseException] = queue.SimpleQueue()
        #: (request, round, stage) with what it needs; ``stage = num_stages`` is the result.
        self.ready: list[tuple[int, int, int, list[torch.Tensor]]] = []

    def listen(self, slot: int, count: int) -> None:
        """Wait for every message of a slot, in order; runs in a thread of its own."""
        assert self.transport is not None
        try:
            for request in range(slot, count, self.window):
                for boundary, round_index in arrivals(self.layout, self.rank, self.program):
                    pending = self.transport.post(boundary, round_index, slot)
                    started_s = time.monotonic()
                    tensors = self.transport.take(pending)
                    note = (boundary.index, round_index, started_s, time.monotonic())
                    self.spans.setdefault(request, Spans()).receives.append(note)
                    self.arrived.put((request, boundary, round_index, tensors))
        except BaseException as error:  # said by the main thread
            self.arrived.put(error)

    def accept(self, message: _Message) -> None:
        """Make a message ready to be computed on."""
        request, boundary, round_index, tensors = message
        stage = 0 if boundary.index == self.layout.loop else boundary.index
        heapq.heappush(self.ready, (request, round_index, stage, tensors))

    def send(self, request: int, boundary: Boundary, round_index: int, tensors: list[torch.Tensor]) -> None:
        """Pass tensors on, to another worker or to this one."""
        if not boundary.crosses:
            self.accept((request, boundary, round_index, tensors))
            return
        assert self.transport is not None
        num_bytes, started_s = self.transport.send(boundary, round_index, tensors, request % self.window)
        self.spans[request].sends.append((boundary.index, round_index, num_bytes, started_s))

    def begin(self, request: int) -> None:
        """Forget what the slot held before."""
        if request not in self.begun:
            self.begun.add(request)
            self.spans.setdefault(request, Spans())
            self.programs[request % self.window].begin()

    def compute(self, request: int, round_index: int, stage: int, inputs: list[torch.Tensor]) -> None:
        """Run one stage of one round of one request."""
        self.state.request = request
        self.state.now("compute", stage, round_index)
        started = computing_begins(self.layout.hosts[self.rank])
        outputs = self.programs[request % self.window].run(stage, round_index, inputs)
        rest(started, self.pace)
        self.spans[request].computes.append((stage, round_index, started.clock_s, time.monotonic()))
        if goes_on(self.program, stage, round_index + 1):
            heapq.heappush(self.ready, (request, round_index + 1, stage, []))
        leaving = self.layout.leaving(stage, round_index == self.rounds - 1)
        if leaving.index == self.layout.loop and goes_on(self.program, 0, round_index + 1):
            return
        self.send(request, leaving, round_index + (leaving.index == self.layout.loop), outputs)


def stream(
    program: Program,
    layout: Layout,
    rank: int,
    transport: Transport | None,
    state: State,
    requests: Sequence[list[torch.Tensor]] | None,
    count: int,
    window: int,
    pace: float | None = None,
) -> list[Spans]:
    """Run ``count`` requests with at most ``window`` in flight.

    Parameters
    ----------
    transport
        ``None`` when a single worker does it all.
    requests
        The inputs, used in turn, on the source (rank 0); ``None`` elsewhere.
    pace
        As in :func:`edgeopt.executor.serve.serve`.

    Returns
    -------
    list of Spans
        By request; times of all requests are on one clock.
    """
    own = _Stream(program, layout, rank, transport, state, window, pace)
    stages = sum(layout.host_of(stage).rank == rank for stage in range(layout.num_stages))
    left = count * (stages * program.rounds + (requests is not None))
    if transport is not None:
        state.now("wait")
        transport.assemble()
        for slot in range(min(window, count)):
            threading.Thread(target=own.listen, args=(slot, count), daemon=True).start()

    def admit(request: int) -> None:
        if requests is not None and request < count:
            own.begin(request)
            own.spans[request].start = time.monotonic()
            own.send(request, layout.boundaries[0], 0, requests[request % len(requests)])

    for request in range(window):
        admit(request)
    while left:
        state.now("receive")
        while not own.ready or not own.arrived.empty():
            message = own.arrived.get()
            if isinstance(message, BaseException):
                raise message
            own.accept(message)
        request, round_index, stage, tensors = heapq.heappop(own.ready)
        own.begin(request)
        if stage == layout.num_stages:
            own.spans[request].result = tensors
            own.spans[request].stop = time.monotonic()
            admit(request + window)
        else:
            own.compute(request, round_index, stage, tensors)
        left -= 1
    if transport is not None:
        state.now("wait")
        transport.flush()
    return [own.spans.get(request, Spans()) for request in range(count)]
