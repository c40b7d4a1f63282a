"""What driver and workers say to each other, one JSON document a frame: a job goes in, events come out.

A worker on this machine writes events to the pipe that was its standard output (everything else that prints there goes
to standard error), one elsewhere to the connection that it opened. Every document is validated when it is read; a job
can name no code.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, TypeAdapter

from edgeopt.plan import Plan

__all__ = [
    "Beat",
    "Checked",
    "Done",
    "Event",
    "Failed",
    "Go",
    "Handoff",
    "Hello",
    "Job",
    "Ready",
    "ResultPart",
    "Trace",
    "dump_job",
    "parse_event",
]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hello(_Message):
    """What a worker that calls back asks for: to be a device of the plan.

    ``address`` is where it listens for its peers' tensors; ``port`` where it serves the rendezvous, on the source.
    """

    device: str = Field(max_length=200)
    version: str = Field(max_length=100)
    address: str = Field(max_length=200)
    port: int | None = Field(default=None, ge=1, le=65535)
    pid: int = Field(ge=1)
    machine: str = Field(max_length=200)


class Handoff(_Message):
    """What a stage was handed, kept by the driver so that the request can go on if a worker is lost.

    ``data`` is the tensors as safetensors, in base64.
    """

    event: Literal["handoff"] = "handoff"
    request: int
    purpose: Literal["cut", "loop"]
    cut: int
    round: int
    data: str


class Job(_Message):
    """What one process is to do.

    ``token`` is random: runs side by side cannot meet at one rendezvous. ``pace`` is the fraction of its speed that
    an emulated device computes at; ``compute_cores`` are those of the machine that its computing is bound to, while
    the threads that carry its messages stay on the cores that the process was started on. ``own_address``: where gloo
    listens, and nowhere else; ``None``: on the interface that the environment names. ``driver_pid`` is ``None``,
    ``return_result`` says how the result comes back, and ``limit_to_free`` that the worker looks itself how much
    memory it may take, where the driver is another machine.
    """

    role: Literal["worker", "reference"]
    plan: Plan
    driver_pid: int | None = None
    rank: int = 0
    threads: int = Field(ge=1)
    repeat: int = Field(default=1, ge=1)
    warmup: int = Field(default=0, ge=0)
    in_flight: int = Field(default=1, ge=1)
    seed: int = 0
    timeout_s: float = Field(gt=0)
    address: str = "127.0.0.1"
    port: int = 0
    token: str = ""
    listen_fd: int | None = None
    own_address: str | None = None
    result_fd: int | None = None
    return_result: bool = False
    memory_bytes: float | None = None
    limit_to_free: bool = False
    pace: float | None = Field(default=None, gt=0, le=1)
    compute_cores: list[int] | None = None
    keep_handoffs: bool = False
    resume: list[Handoff] = []


class Go(_Message):
    """The driver's second message: everybody is ready and, where asked for, throttled."""

    go: Literal[True] = True


class Ready(_Message):
    """Program built, peers connected.

    ``machine`` tells hosts with a common clock from others; ``clock_offset_s`` and ``clock_error_s`` are those of
    :func:`edgeopt.executor.clock.clock_offset`; ``carrier`` is what moves tensors.
    """

    event: Literal["ready"] = "ready"
    build_s: float
    machine: str = ""
    clock_offset_s: float = 0.0
    clock_error_s: float = 0.0
    carrier: Literal["gloo", "nccl"] = "gloo"


class Beat(_Message):
    """A sign of life, twice a second: what the worker is doing and what it holds.

    ``peer`` is the rank that a party waits for; ``moves`` counts what a party has done, so that progress shows.
    """

    event: Literal["beat"] = "beat"
    doing: str
    stage: int | None = None
    round: int | None = None
    request: int | None = None
    peer: int | None = None
    moves: int = 0
    memory_bytes: float


class Trace(_Message):
    """One request on one worker, in seconds of the host's monotonic clock.

    ``computes``: (stage, round, start, stop); ``sends``: (boundary, round, bytes, start); ``receives``: (boundary,
    round, start of the wait, stop). Parties that talk freely say whom they sent a message, numbered by pair, in
    ``sent``: (receiver, number, label, bytes, start), and of whom they took one in ``taken``: (sender, number, start of
    the wait, its stop, arrival). ``start``, ``stop`` and ``digest`` (SHA-256 of the result) come from the source, as do
    ``answers`` of a stream of requests, (query, its arrival, its answer), and ``measures``: what the program finds in
    the result beside times.
    """

    event: Literal["trace"] = "trace"
    request: int
    warmup: bool
    start: float | None = None
    stop: float | None = None
    digest: str | None = None
    computes: list[tuple[int, int, float, float]]
    sends: list[tuple[int, int, int, float]]
    receives: list[tuple[int, int, float, float]]
    sent: list[tuple[int, int, str, int, float]] = []
    taken: list[tuple[int, int, float, float, float]] = []
    answers: list[tuple[int, float, float]] = []
    measures: dict[str, float] = {}


class ResultPart(_Message):
    """A piece of the result of the last request, as safetensors; the pieces come in order."""

    event: Literal["result"] = "result"
    data: Base64Bytes


class Done(_Message):
    """The worker has no more to do."""

    event: Literal["done"] = "done"
    peak_memory_bytes: float


class Failed(_Message):
    """The worker's own words before it ends. ``peer``: another worker is missing, which is seldom the cause."""

    event: Literal["failed"] = "failed"
    kind: Literal["memory", "peer", "program", "input", "dependency"]
    message: str
    stage: int | None = None
    round: int | None = None


class Checked(_Message):
    """The reference process compared its result with the distributed one."""

    event: Literal["checked"] = "checked"
    equal: bool
    kind: str
    max_abs_diff: float | None
    tolerance: float | None = None


Event = Annotated[Ready | Beat | Trace | Handoff | ResultPart | Done | Failed | Checked, Field(discriminator="event")]
_EVENT: TypeAdapter[Any] = TypeAdapter(Event)


def dump_job(job: Job) -> bytes:
    """Write a job; infinite numbers (a throughput without bound) survive, unlike in pydantic's own JSON."""
    return json.dumps(job.model_dump(mode="json", by_alias=True)).encode()


def parse_event(line: bytes) -> Any:
    """Read one document; raises ``ValueError`` if it is no event."""
    return _EVENT.validate_json(line)
