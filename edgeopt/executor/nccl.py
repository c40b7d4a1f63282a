"""Tensors between GPUs, from one memory to the other, by NCCL.

NCCL matches messages by their order, and what two workers say to each other waits in one line: a receive that was
posted ahead would hold up the answer that its sender is waiting for. So there is a group for each direction, from lower
to higher ranks and back, and within a direction both ends keep the order of the plan. Everything that is not a tensor
of the plan still goes through gloo.

Not exercised on GPUs so far; that the order suffices is tested with gloo groups in NCCL's place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist

from edgeopt.executor.layout import Layout
from edgeopt.executor.messages import Job
from edgeopt.executor.transport import Transport, TransportError
from edgeopt.programs.base import Program

__all__ = ["OrderedTransport", "interface_of", "join_gpus"]


class OrderedTransport(Transport):
    """A transport whose groups know no tags, one for each direction.

    Parameters
    ----------
    control
        The gloo group, for everything but tensors.
    upwards, downwards
        Groups for messages to higher and to lower ranks.
    device
        Where tensors lie on both ends.
    """

    def __init__(
        self, program: Program, layout: Layout, control: Any, upwards: Any, downwards: Any, device: torch.device
    ) -> None:
        super().__init__(program, layout, control, device)
        self._upwards, self._downwards = upwards, downwards

    def hand_over(self, raw: torch.Tensor, to: int, tag: int) -> None:
        """Start to send bytes; the tag says nothing here."""
        own = self._group.rank()
        with _told():
            self._sending.append((_between(own, to, self._upwards, self._downwards).send([raw], to, 0), raw))
        self._sending = [entry for entry in self._sending if not entry[0].is_completed()]

    def expect(self, raw: torch.Tensor, source: int, tag: int) -> dist.Work:
        """Start to receive bytes."""
        with _told():
            return _between(source, self._group.rank(), self._upwards, self._downwards).recv([raw], source, 0)

    def greet(self) -> None:
        """Connect every pair, in the same order everywhere: NCCL connects at the first message, and waits for it."""
        own = self._group.rank()
        word = torch.ones(1, dtype=torch.uint8, device=self._device)
        for low, high in combinations(range(self._group.size()), 2):
            for group, sender, receiver in ((self._upwards, low, high), (self._downwards, high, low)):
                with _told():
                    if own == sender:
                        group.send([word], receiver, 0).wait()
                    elif own == receiver:
                        group.recv([word], sender, 0).wait()
        self._settle()

    def take(self, pending: Any) -> list[torch.Tensor]:
        """Wait until a message is in this GPU's memory, not only until the GPU has been told to wait for it."""
        tensors = super().take(pending)
        self._settle()
        return tensors

    def flush(self) -> None:
        """Wait until everything sent has left."""
        super().flush()
        self._settle()

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def join_gpus(
    job: Job, store: dist.Store, program: Program, layout: Layout, control: Any, interface: str, index: int
) -> OrderedTransport:
    """Connect workers that all compute on GPUs of their own.

    Parameters
    ----------
    interface
        Where NCCL listens, and nowhere else.
    index
        Of this worker's GPU.

    Raises
    ------
    TransportError
        NCCL says why.
    """
    os.environ["NCCL_SOCKET_IFNAME"] = f"={interface}"
    groups = []
    with _told():
        for name in ("upwards", "downwards"):
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timedelta(seconds=job.timeout_s)
            own = dist.PrefixStore(name, store)
            groups.append(dist.ProcessGroupNCCL(own, job.rank, len(layout.hosts), options))
    transport = OrderedTransport(program, layout, control, *groups, torch.device("cuda", index))
    transport.greet()
    program.stays_on_device = True
    return transport


def interface_of(job: Job) -> str | None:
    """Name the network interface that this worker may listen on; ``None``: no interface has its address."""
    if job.own_address is None:
        return os.environ.get("GLOO_SOCKET_IFNAME")
    import psutil

    found: dict[str, Sequence[Any]] = psutil.net_if_addrs()
    return next((name for name, all_ in found.items() if any(a.address == job.own_address for a in all_)), None)


def _between(sender: int, receiver: int, upwards: Any, downwards: Any) -> Any:
    return upwards if sender < receiver else downwards


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what a group raises into words for the driver."""
    try:
        yield
    except RuntimeError as error:
        raise TransportError((str(error).strip().splitlines() or [type(error).__name__])[0][:300]) from error
