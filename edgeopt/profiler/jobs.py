"""Jobs for measuring processes and what they answer, as JSON over pipes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from edgeopt.plan import Plan
from edgeopt.profiles.base import DType
from edgeopt.profiles.device import Yardstick
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.problem import TextWorkload

__all__ = [
    "ElementAnswer", "ElementJob", "ElementSamples", "Failure", "LinkJob", "LinkRun", "LinkSamples", "MachineFigures",
    "MachineJob", "PassJob", "PassSamples", "parse_job",
]  # fmt: skip


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MachineJob(_Record):
    """Rates of the machine itself, no model."""

    task: Literal["machine"] = "machine"
    threads: int
    dtypes: list[DType]
    accelerator: Literal["cpu", "cuda"] = "cpu"


class MachineFigures(_Record):
    """What a :class:`MachineJob` found. Efficiencies are those of kernels as layers use them, relative to the peaks.

    ``message_s`` and ``message_s_per_byte`` are those of :func:`edgeopt.profiler.carrying.message_seconds`,
    ``rested_message_s`` that of :func:`edgeopt.profiler.carrying.rested_message_seconds`.
    ``total_bytes`` is the accelerator's memory, ``None`` where it computes in the host's.
    """

    flop_per_s: dict[DType, float]
    memory_bytes_per_s: float
    launch_s: float
    compute_efficiency: float
    rows: list[int]
    compute_by_rows: list[float]
    memory_efficiency: float
    message_s: float
    message_s_per_byte: float
    rested_message_s: float
    total_bytes: int | None
    workspace_bytes: int
    fragmentation: float
    torch_version: str


class ElementJob(_Record):
    """Run all stages of each plan in one process and time every element of every round.

    ``whole``: nothing is timed inside a round, so that a round's time holds no measuring; its one value is the round.
    Of a plan by patches the first patch is run, alone; its elements are steps. ``yardstick`` is applied before every
    round and after the last.
    """

    task: Literal["elements"] = "elements"
    threads: int
    plans: list[Plan]
    warmup: int
    repeats: int
    seed: int = 0
    whole: bool = False
    yardstick: Yardstick | None = None


class ElementSamples(_Record):
    """Seconds, ``elements_s[request][round][element]``, of whole requests, and what they waited for a core.

    ``wakes_s``: what a stage took longer after a rest, in each round of several where it rested; empty where nothing
    but one round is run. ``yardsticks_s``: mean of what the yardstick took in each request; empty without one.
    """

    elements_s: list[list[list[float]]]
    wakes_s: list[float] = []
    requests_s: list[float]
    waited_s: list[float]
    yardsticks_s: list[float] = []


class ElementAnswer(_Record):
    """Samples of each plan of a job."""

    plans: list[ElementSamples]


class PassJob(_Record):
    """Time drafting and verifying, each draft of a model in turn; see :mod:`edgeopt.profiler.passes`.

    ``pace`` is that of decoding alone; ``yardstick_s`` what the yardstick takes at the speed that everything is told at.
    """

    task: Literal["passes"] = "passes"
    threads: int
    model: CausalLM
    workload: TextWorkload
    lengths: list[int]
    repeats: int
    pace: float | None = None
    yardstick_s: float | None = None


class PassSamples(_Record):
    """Seconds by draft, by side (``target``, ``draft``) and by number of new tokens."""

    drafts: dict[str, dict[str, dict[int, float]]]


class LinkJob(_Record):
    """One end of a link between ranks 0 and 1, which meet at ``address``; gloo listens on ``own_address`` alone.

    ``listen_fd`` is the listening socket, given to the end that serves the meeting. ``pauses_s`` come before every
    message, all of them in turn.
    """

    task: Literal["link"] = "link"
    threads: int
    rank: Literal[0, 1]
    own_address: str
    address: str
    port: int
    listen_fd: int | None = None
    token: str
    sizes_bytes: list[int]
    repeats: int
    pauses_s: list[float]
    both_ways: bool
    timeout_s: float


class LinkRun(_Record):
    """Readings of one end's monotonic clock: ``moments_s[repeat][size]``, when it began to send or had received.

    ``pings_s[repeat][ping]``: when rank 0 sent and had the answer; when rank 1 received and answered.
    """

    sender: Literal[0, 1]
    pause_s: float
    pings_s: list[list[tuple[float, float]]]
    moments_s: list[list[float]]


class LinkSamples(_Record):
    """What one end saw."""

    runs: list[LinkRun]


class Failure(_Record):
    """Why a job was not done; ``wrong_input``: the request was, not the machine."""

    failure: str
    wrong_input: bool


_JOBS: TypeAdapter[MachineJob | ElementJob | PassJob | LinkJob] = TypeAdapter(
    Annotated[MachineJob | ElementJob | PassJob | LinkJob, Field(discriminator="task")]
)


def parse_job(text: bytes) -> MachineJob | ElementJob | PassJob | LinkJob:
    """Read a job."""
    return _JOBS.validate_json(text)
