"""Report: what a run measured, beside what its plan had predicted, term by term.

Everything a reader needs to believe or doubt the figures is in it: the plan's digest, the hardware and versions,
the seed, every sample, and whether the distributed result equals the single-process one. Seconds, bytes and SI
floats throughout; it writes to JSON and YAML as it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from edgeopt.plan import Interval, Plan, Purpose

__all__ = [
    "FORMAT", "Comparison", "DeviceReport", "ErrorSplit", "Hardware", "OutputCheck", "Recovery", "Report", "Responses",
    "Samples", "StageReport", "TransferReport",
]  # fmt: skip

FORMAT = "edgeopt-report/1"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Samples(_Record):
    """One quantity over the counted requests: ``spread`` is the interquartile range, 0 for a single sample."""

    median: float
    spread: float
    samples: list[float]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Samples:
        """Summarise ``samples`` (at least one)."""
        values = [float(value) for value in samples]
        if len(values) > 1:
            first, _, third = statistics.quantiles(values, n=4, method="inclusive")
            spread = third - first
        else:
            spread = 0.0
        return cls(median=statistics.median(values), spread=spread, samples=values)


class Comparison(Samples):
    """A predicted quantity beside its samples.

    ``relative_error`` is (predicted − median) / median: positive when the prediction was too high. It is ``None``
    where nothing was predicted or nothing was measured.
    """

    predicted: float | None
    relative_error: float | None

    @classmethod
    def between(cls, predicted: float | None, samples: Sequence[float]) -> Comparison:
        """Put ``predicted`` beside ``samples`` (at least one)."""
        measured = Samples.of(samples)
        if predicted is not None and not math.isfinite(predicted):
            predicted = None  # a throughput without bound predicts nothing
        known = predicted is not None and measured.median > 0
        error = (predicted - measured.median) / measured.median if known else None
        return cls(**measured.model_dump(), predicted=predicted, relative_error=error)


class StageReport(_Record):
    """Compute of one stage, summed over the rounds of a request; ``first_round_s`` is a language model's prefill."""

    index: int
    device: str
    variant: str | None
    start: int
    stop: int
    elements: str
    compute_s: Comparison
    first_round_s: Samples


class TransferReport(_Record):
    """One of the plan's transfers, summed over the rounds of a request.

    ``seconds`` runs from the sender's start to the receiver's end: what the receiver waited before is not in it.
    ``bytes`` and ``messages`` are what really went over the wire.
    """

    purpose: Purpose
    cut: int
    source: str
    destination: str
    predicted_bytes: float | None
    bytes: float
    predicted_messages: float | None
    messages: float
    seconds: Comparison


class DeviceReport(_Record):
    """One worker process: how it was run, and how a request's time passed on it.

    ``waiting_s`` is spent for input to arrive (transfers included), ``idle_s`` is all that is not compute.
    ``peak_memory_bytes`` is the whole process with its libraries; ``predicted_memory_bytes`` is the plan's alone.
    ``clock_offset_s`` was added to this host's times to get the source's, right to within ``clock_error_s``; both are
    0 on the source's own machine.
    """

    device: str
    stages: list[int]
    threads: int
    cpu_quota: float | None
    compute_s: Samples
    waiting_s: Samples
    idle_s: Samples
    predicted_memory_bytes: float
    peak_memory_bytes: float
    clock_offset_s: float = 0.0
    clock_error_s: float = 0.0


class ErrorSplit(_Record):
    """Predicted minus measured latency in seconds, by term: ``total_s = compute_s + transfer_s + overhead_s``.

    Where parties of a technique that is no chain work at the same time, the terms are those of the device that computes
    longest: its computing, and its waiting for messages beside the rest of the predicted latency.
    ``overhead_s`` is minus the measured time that is neither compute nor transfer, plus whatever the prediction held
    beyond the two. ``overhead_ratio`` is measured latency over measured compute and transfers.
    """

    total_s: float
    compute_s: float
    transfer_s: float
    overhead_s: float
    overhead_ratio: float


class Recovery(_Record):
    """A fault and how the request got over it, in seconds of the driver's clock.

    ``served_before_s`` passed between the first request and the fault's detection; then ``planning_s``, ``restart_s``
    until workers were ready again, and ``rest_s`` for what was left of the request. ``kept_bytes`` is what had been
    kept of it, ``predicted_rest_s`` what the plan of the rest said, where it has one. ``digest`` is that of
    its result; ``equal``: requests that nothing interrupted returned the same. Both are ``None`` where the next fault
    came before the result, which ``restart_s`` and ``rest_s`` then lead up to.
    """

    request: int
    policy: Literal["retry", "replan"]
    device: str | None
    stage: int | None
    reason: str
    resumed_from: str
    kept_bytes: int
    served_before_s: float
    planning_s: float
    restart_s: float
    rest_s: float
    devices: list[str]
    predicted_latency_s: float
    predicted_rest_s: float | None = None
    digest: str | None
    equal: bool | None = None


class OutputCheck(_Record):
    """Whether the distributed result equals that of a fresh single-process run.

    ``kind`` says how they agree: ``tokens`` and ``bitwise`` to the last bit, ``tolerance`` within ``tolerance`` times
    the largest expected value. ``max_abs_diff`` is ``None`` where shapes differ or a value is not a number.
    ``repeats_equal``: every request of the run returned the same bytes.
    """

    equal: bool
    kind: str
    max_abs_diff: float | None
    tolerance: float | None = None
    repeats_equal: bool


class Hardware(_Record):
    """The machine and the software that ran it."""

    cpu: str
    physical_cores: int | None
    logical_cores: int
    usable_cores: int
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]


class Responses(_Record):
    """Response times of requests that arrived by themselves, from arrival to answer, in seconds.

    ``low_s`` and ``high_s`` bound the 95 % confidence interval of the mean (means of batches; ``None``: too few
    requests for one). Repeats serve the same arrivals: the interval is that of the first, the other figures are of all.
    """

    requests: int
    mean_s: float
    low_s: float | None
    high_s: float | None
    median_s: float
    p95_s: float
    max_s: float


class Report(_Record):
    """One execution of one plan.

    ``in_flight`` requests were under way at a time. ``throughput_per_s`` is results per second once all slots were
    filled, one sample per block of consecutive results; with one request at a time it is 1/latency and is left out.
    After a fault with ``on_fault: replan`` everything but ``recoveries`` is about the plan ``replanned``.
    ``timeline`` is the request whose latency is nearest to the median, from its start.
    Where requests arrive by themselves, a request above is a whole stream of them: ``latency_s`` is the mean of
    ``responses``, and stages, transfers and devices are averages per request of the stream.
    """

    format: Literal["edgeopt-report/1"] = FORMAT
    edgeopt_version: str
    date: datetime
    plan_digest: str
    problem: str
    model: str
    strategy: str
    launcher: str
    emulated: bool
    repeat: int
    warmup: int
    seed: int
    in_flight: int = 1
    elapsed_s: float
    latency_s: Comparison
    throughput_per_s: Comparison | None = None
    metrics: dict[str, Comparison]
    responses: Responses | None = None
    stages: list[StageReport]
    transfers: list[TransferReport]
    devices: list[DeviceReport]
    error: ErrorSplit
    output: OutputCheck | None
    hardware: Hardware
    timeline: list[Interval] = []
    recoveries: list[Recovery] = []
    replanned: Plan | None = None
    notes: list[str] = []
