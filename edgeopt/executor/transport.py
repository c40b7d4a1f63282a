"""Tensors between workers, by gloo send and receive.

In a chain both ends know shape and dtype of every message from the plan, so nothing but the tensors' bytes is on the
wire. A message without tensors still has to say "go": one byte is sent for it. The receive of the next message is
posted before it is needed, since gloo then takes the data off the wire while the worker computes.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from edgeopt.executor.clock import clock_offset
from edgeopt.executor.layout import Boundary, Layout
from edgeopt.executor.messages import Job
from edgeopt.programs.base import Program, TensorSpec

__all__ = ["Peers", "Pending", "Transport", "TransportError", "agree_on_time", "join", "open_store"]

_TENSORS_PER_MESSAGE = 1 << 8
_GO = TensorSpec((1,), torch.uint8)
#: Above the tags of all tensors.
_READY_TAG = 1 << 30


class TransportError(RuntimeError):
    """A peer is gone or does not answer."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A posted receive."""

    boundary: Boundary
    round_index: int
    tensors: list[torch.Tensor]
    works: list[dist.Work]
    empty: bool


def open_store(job: Job, num_workers: int) -> dist.Store:
    """Open the rendezvous; rank 0 serves it on the socket that the driver gave it, bound to the loopback address."""
    own = {"master_listen_fd": job.listen_fd} if job.listen_fd is not None else {}
    try:
        store = dist.TCPStore(
            job.address,
            job.port,
            num_workers,
            job.listen_fd is not None,
            timeout=timedelta(seconds=job.timeout_s),
            wait_for_workers=False,
            **own,
        )
    except (RuntimeError, OSError) as error:  # DistStoreError and friends are RuntimeErrors
        raise TransportError(f"no rendezvous at {job.address}:{job.port}: {_first_line(error)}") from error
    return dist.PrefixStore(job.token, store)


def join(job: Job, store: dist.Store, num_workers: int) -> dist.ProcessGroupGloo:
    """Connect all workers with each other; gloo listens on the job's own address and nowhere else.

    Without one it listens on the interface that its driver named, ``GLOO_SOCKET_IFNAME``.
    A group of its own, not torch's default one, which takes no address.
    """
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=job.timeout_s)
    try:
        if job.own_address is not None:
            device = dist.ProcessGroupGloo.create_device(hostname=job.own_address)
        else:
            device = dist.ProcessGroupGloo.create_device(interface=os.environ["GLOO_SOCKET_IFNAME"])
        options._devices = [device]
        return dist.ProcessGroupGloo(store, job.rank, num_workers, options)
    except (RuntimeError, OSError) as error:
        raise TransportError(_first_line(error)) from error


def agree_on_time(group: dist.ProcessGroupGloo) -> tuple[float, float]:
    """Measure the clock's offset; see :func:`edgeopt.executor.clock.clock_offset`."""
    try:
        return clock_offset(group)
    except RuntimeError as error:
        raise TransportError(_first_line(error)) from error


class Peers:
    """The other workers of a run, and what is on its way to them."""

    def __init__(self, layout: Layout, group: dist.ProcessGroupGloo) -> None:
        self._layout, self._group = layout, group
        self._sending: list[tuple[dist.Work, torch.Tensor]] = []

    def hand_over(self, raw: torch.Tensor, to: int, tag: int) -> None:
        """Start to send bytes, and keep them until they have left."""
        try:
            self._sending.append((self._group.send([raw], to, tag), raw))
        except RuntimeError as error:
            raise TransportError(_first_line(error)) from error
        self._sending = [entry for entry in self._sending if not entry[0].is_completed()]

    def expect(self, raw: torch.Tensor, source: int, tag: int) -> dist.Work:
        """Start to receive bytes: at most as many as ``raw`` has."""
        try:
            return self._group.recv([raw], source, tag)
        except RuntimeError as error:
            raise TransportError(_first_line(error)) from error

    @staticmethod
    def wait(work: dist.Work) -> None:
        """Wait until bytes have come, or left."""
        try:
            work.wait()
        except RuntimeError as error:
            raise TransportError(_first_line(error)) from error

    def flush(self) -> None:
        """Wait until everything sent has left; buffers are kept alive until then."""
        for work, _ in self._sending:
            self.wait(work)
        self._sending.clear()

    def assemble(self) -> None:
        """Hold the source until all others are ready for its request; they go on at once.

        First everybody hears from everybody: gloo tells a sender that a receive is posted, and on each connection what
        was said before the word has then arrived. Then the source hears once more that this is so. After a barrier it
        would start while others are still inside, for as long as the slowest link takes, and what it sends them would
        seem to take that long.
        """
        rank = self._group.rank()
        others = [host.rank for host in self._layout.hosts if host.rank != rank]
        try:
            self._exchange(others, others, _READY_TAG)
            self._exchange([] if rank == 0 else [0], others if rank == 0 else [], _READY_TAG + 1)
        except RuntimeError as error:
            raise TransportError(_first_line(error)) from error

    def _exchange(self, to: list[int], of: list[int], tag: int) -> None:
        """Say one byte to some and hear one byte of some."""
        words = {rank: torch.empty(1, dtype=torch.uint8) for rank in of}
        said = torch.ones(1, dtype=torch.uint8)
        works = [self._group.recv([word], rank, tag) for rank, word in words.items()]
        works += [self._group.send([said], rank, tag) for rank in to]
        for work in works:
            work.wait()

    def barrier(self) -> None:
        """Wait for all workers."""
        try:
            self._group.barrier().wait()
        except RuntimeError as error:
            raise TransportError(_first_line(error)) from error


class Transport(Peers):
    """Messages of one worker in a chain, whose shapes both ends know from the plan.

    ``round_index`` is always the receiver's: the loop that ends round r carries the input of round r + 1. ``device``:
    where tensors are sent from and received to; gloo knows main memory only.
    """

    def __init__(
        self,
        program: Program,
        layout: Layout,
        group: dist.ProcessGroupGloo,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        super().__init__(layout, group)
        self._program, self._device = program, device

    def post(self, boundary: Boundary, round_index: int, slot: int = 0) -> Pending:
        """Start to receive a message; ``slot`` tells requests in flight apart."""
        specs = self.specs(boundary, round_index)
        tensors = [torch.empty(spec.shape, dtype=spec.dtype, device=self._device) for spec in specs or [_GO]]
        tag = self._tag(boundary, round_index, slot)
        works = [self.expect(_raw(tensor), boundary.sender, tag + i) for i, tensor in enumerate(tensors)]
        return Pending(boundary, round_index, tensors, works, not specs)

    def take(self, pending: Pending) -> list[torch.Tensor]:
        """Wait for a posted message."""
        for work in pending.works:
            self.wait(work)
        return [] if pending.empty else pending.tensors

    def send(
        self, boundary: Boundary, round_index: int, tensors: list[torch.Tensor], slot: int = 0
    ) -> tuple[int, float]:
        """Start to send a message; returns its bytes and when it started.

        Raises
        ------
        ValueError
            The tensors are not what the receiver expects.
        """
        _check(boundary, tensors, self.specs(boundary, round_index))
        tensors = tensors or [torch.ones(1, dtype=torch.uint8)]
        tensors = [tensor.detach().to(self._device).contiguous() for tensor in tensors]
        tag = self._tag(boundary, round_index, slot)
        started_s = time.monotonic()
        for i, tensor in enumerate(tensors):
            self.hand_over(_raw(tensor), boundary.receiver, tag + i)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors), started_s

    def specs(self, boundary: Boundary, round_index: int) -> list[TensorSpec]:
        """What a message holds."""
        specs = self._program.specs(0 if boundary.index == self._layout.loop else boundary.index, round_index)
        if len(specs) > _TENSORS_PER_MESSAGE:
            raise ValueError(f"a message holds at most {_TENSORS_PER_MESSAGE} tensors, not {len(specs)}")
        return specs

    def _tag(self, boundary: Boundary, round_index: int, slot: int) -> int:
        message = slot * (self._program.rounds + 1) + round_index
        return (message * (self._layout.num_stages + 2) + boundary.index) * _TENSORS_PER_MESSAGE


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes of a tensor without a copy: gloo moves every dtype that way."""
    return tensor.view(-1).view(torch.uint8)


def _check(boundary: Boundary, tensors: list[torch.Tensor], specs: list[TensorSpec]) -> None:
    given = [TensorSpec(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
    if given != specs:
        what = f"the {boundary.purpose} at cut {boundary.cut}"
        raise ValueError(f"{what} should hold {_words(specs)}, and the program made {_words(given)}")


def _words(specs: list[TensorSpec]) -> str:
    return ", ".join(f"{spec.dtype} {list(spec.shape)}".removeprefix("torch.") for spec in specs) or "nothing"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
