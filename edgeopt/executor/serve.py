"""One request on one worker: receive, compute, send, in the plan's order, with the time of each."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from edgeopt.executor.layout import Boundary, Layout
from edgeopt.executor.pacing import computing_begins, rest
from edgeopt.executor.state import State
from edgeopt.executor.transport import Pending, Transport
from edgeopt.programs.base import Program

__all__ = ["Spans", "arrivals", "digest", "goes_on", "serve"]


@dataclass(slots=True)
class Spans:
    """Times of one request, as in :class:`edgeopt.executor.messages.Trace`; ``result`` is the source's."""

    start: float | None = None
    stop: float | None = None
    result: list[torch.Tensor] | None = None
    computes: list[tuple[int, int, float, float]] = field(default_factory=list)
    sends: list[tuple[int, int, int, float]] = field(default_factory=list)
    receives: list[tuple[int, int, float, float]] = field(default_factory=list)
    sent: list[tuple[int, int, str, int, float]] = field(default_factory=list)
    taken: list[tuple[int, int, float, float, float]] = field(default_factory=list)
    answers: list[tuple[int, float, float]] = field(default_factory=list)


def serve(
    program: Program,
    layout: Layout,
    rank: int,
    transport: Transport | None,
    state: State,
    request: list[torch.Tensor] | None,
    pace: float | None = None,
    keep: Callable[[Boundary, int, list[torch.Tensor]], None] | None = None,
) -> Spans:
    """Run one request.

    Parameters
    ----------
    transport
        ``None`` when a single worker does it all.
    request
        The input, on the source (rank 0); ``None`` elsewhere.
    pace
        Fraction of its speed to compute at, by resting after every stage; ``None``: all of it.
    keep
        Called with what a stage was handed where the program can resume from it.
    """
    spans = Spans()
    handed: dict[int, list[torch.Tensor]] = {}  # by boundary, from this worker to itself
    due = arrivals(layout, rank, program)
    posted: list[Pending] = []

    def post_next() -> None:
        if due and not posted:
            assert transport is not None
            posted.append(transport.post(*due.pop(0)))

    def receive(boundary: Boundary, round_index: int) -> list[torch.Tensor]:
        if not boundary.crosses:
            return handed.pop(boundary.index)
        assert transport is not None
        post_next()
        started_s = time.monotonic()
        tensors = transport.take(posted.pop())
        spans.receives.append((boundary.index, round_index, started_s, time.monotonic()))
        post_next()
        return tensors

    def send(boundary: Boundary, round_index: int, tensors: list[torch.Tensor]) -> None:
        if not boundary.crosses:
            handed[boundary.index] = tensors
            return
        assert transport is not None
        num_bytes, started_s = transport.send(boundary, round_index, tensors)
        spans.sends.append((boundary.index, round_index, num_bytes, started_s))

    program.begin()
    post_next()
    state.now("wait")
    if transport is not None:
        transport.assemble()
    if request is not None:
        spans.start = time.monotonic()
        send(layout.boundaries[0], 0, request)
    own = [stage for stage in range(layout.num_stages) if layout.host_of(stage).rank == rank]
    for round_index in range(program.rounds):
        last_round = round_index == program.rounds - 1
        for stage in own:
            inputs: list[torch.Tensor] = []
            if not goes_on(program, stage, round_index):
                arriving = layout.arriving(stage, round_index)
                state.now("receive", stage, round_index)
                inputs = receive(arriving, round_index)
                if keep is not None and arriving.purpose in program.resumes_from:
                    keep(arriving, round_index, inputs)
            state.now("compute", stage, round_index)
            started = computing_begins(layout.hosts[rank])
            outputs = program.run(stage, round_index, inputs)
            if program.stays_on_device and outputs and outputs[0].is_cuda:
                torch.cuda.synchronize()
            rest(started, pace)
            spans.computes.append((stage, round_index, started.clock_s, time.monotonic()))
            leaving = layout.leaving(stage, last_round)
            if leaving.index == layout.loop and goes_on(program, 0, round_index + 1):
                continue
            state.now("send", stage, round_index)
            send(leaving, round_index + (leaving.index == layout.loop), outputs)
    if request is not None:
        state.now("receive")
        arrived = receive(layout.boundaries[layout.num_stages], program.rounds - 1)
        spans.result = [tensor.cpu() for tensor in arrived]
        spans.stop = time.monotonic()
    if transport is not None:
        state.now("wait")
        transport.flush()
    return spans


def digest(tensors: list[torch.Tensor]) -> str:
    """SHA-256 over shapes, dtypes and bytes."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {list(tensor.shape)};".encode())
        total.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def arrivals(layout: Layout, rank: int, program: Program) -> list[tuple[Boundary, int]]:
    """Messages that a worker receives from others in one request, in order."""
    order = [
        (layout.arriving(s, r), r)
        for r in range(program.rounds)
        for s in range(layout.num_stages)
        if not goes_on(program, s, r)
    ]
    order.append((layout.boundaries[layout.num_stages], program.rounds - 1))
    return [(boundary, r) for boundary, r in order if boundary.crosses and boundary.receiver == rank]


def goes_on(program: Program, stage: int, round_index: int) -> bool:
    """Whether a stage begins a round without a message: the first, where nothing returns to it."""
    return stage == 0 and round_index > 0 and not program.returns(round_index)
