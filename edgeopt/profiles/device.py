"""Device: what a machine can do, as its datasheet says or as it was measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgeopt.profiles.base import DType, Profile, Provenance, Strict
from edgeopt.profiles.calibration import Calibration
from edgeopt.units import (
    Bytes,
    BytesPerSecond,
    FlopPerSecond,
    Fraction,
    NonNegativeBytes,
    NonNegativeSeconds,
    Seconds,
    TimeUnit,
    Watts,
)

__all__ = ["Device", "Efficiency", "Margin", "Messages", "Power", "Runtime", "Timing", "Yardstick"]

#: What says how fast a machine is at the moment: for models that its caches hold, or for others.
Yardstick = Literal["cached", "streamed"]


class Power(Strict):
    """Electrical power by activity. A field that is absent was not measured: energy objectives then refuse."""

    busy: Watts | None = None
    idle: Watts | None = None
    send: Watts | None = None
    receive: Watts | None = None


class Efficiency(Strict):
    """Fraction of the peaks that real layers reach; never hidden inside the peak.

    ``compute_by_rows`` is the fraction that matrix products reach with ``rows`` rows (tokens times batch), weights
    read from memory: few rows reach little. Without it ``compute`` holds for any number.
    """

    compute: Fraction
    memory_bandwidth: Fraction
    rows: list[int] = []
    compute_by_rows: list[Fraction] = []
    basis: Literal["measured", "assumed"]


class Margin(Strict):
    """Memory that a plan may not count on, beside weights, caches and activations.

    ``workspace`` is what the runtime itself and the kernels' scratch take, ``fragmentation`` the fraction of the rest
    that the allocator cannot use. Where either comes from is said under the profile's ``sources`` as ``margin``.
    """

    workspace: NonNegativeBytes
    fragmentation: Fraction
    basis: Literal["measured", "assumed"]


class Messages(Strict):
    """Processor time of one end of a message between parties, beside what the wire does: of any, and by its bytes.

    It is taken from computing where a device computes with all its cores while messages come and go. ``rested`` is what
    an end takes longer, by the clock, where it waited for its turn: caches are cold then, and links are measured warm.
    """

    each: NonNegativeSeconds
    per_mebibyte: NonNegativeSeconds
    rested: NonNegativeSeconds = 0.0


class Runtime(Strict):
    """How ``execute`` runs this device's stages in a local process.

    ``yardstick`` and ``yardstick_streamed`` are what :mod:`edgeopt.executor.yardstick` took where and when the device
    was measured: an emulated device with a ``cpu_quota`` keeps that speed, whatever the machine's is by then. The first
    is for models that caches hold.
    """

    accelerator: Literal["cpu", "cuda", "mps"] = "cpu"
    threads: int | None = Field(default=None, ge=1)
    cpu_quota: Fraction | None = None
    yardstick: Seconds | None = None
    yardstick_streamed: Seconds | None = None

    def yardstick_s(self, which: Yardstick) -> float | None:
        """Return what the yardstick took for models that caches hold, or for others."""
        return self.yardstick if which == "cached" else self.yardstick_streamed


class Timing(Strict):
    """Measured seconds per chain element of one model in one setting; overrides the roofline where it applies.

    ``phase`` is ``prefill`` or ``decode`` for language models (``tokens`` processed at once, ``context`` tokens
    already cached), ``verify`` for their passes over ``tokens`` drafted ones on a filled cache (one value in
    ``elements``: the whole pass), ``expert`` for ``batch`` experts of one layer in one call, over ``tokens`` tokens
    each (one value), ``score`` for a router's look at a query of ``tokens`` tokens (one value), and ``text_encoder``,
    ``step`` or ``decoder`` for diffusion (one value); ``slab`` is a step on ``rows`` rows of the latent among others'
    (:mod:`edgeopt.programs.slabs`), without what is exchanged.
    ``elements`` are those of a device that computes without a break. ``wake``, in the same unit, is what a stage takes
    longer in a decode round that it had to wait for: caches are cold then, and the core may have slept. Of a draft's
    ``verify`` rows, which are its steps, it is what each round of drafting takes beside them.
    """

    model: str
    variant: str | None = None
    phase: Literal["prefill", "decode", "verify", "expert", "score", "text_encoder", "step", "slab", "decoder"]
    dtype: DType
    batch: int = Field(ge=1)
    tokens: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=0)
    rows: int | None = Field(default=None, ge=1)
    unit: TimeUnit
    elements: list[float] = Field(min_length=1)
    wake: float | None = Field(default=None, ge=0)
    repeats: int = Field(ge=1)
    spread: Fraction | None = None
    source: Provenance


class Device(Profile):
    """One machine: peaks by dtype, memory, overhead, power, and timings measured on it.

    ``launch_overhead`` is that of one operation (kernel), of which a layer has dozens. Without ``margin`` plans may
    fill the memory to the last byte.
    """

    kind: Literal["device"] = "device"
    compute: dict[DType, FlopPerSecond] = Field(min_length=1)
    memory: Bytes
    memory_bandwidth: BytesPerSecond
    launch_overhead: Seconds
    efficiency: Efficiency
    margin: Margin | None = None
    messages: Messages | None = None
    power: Power | None = None
    runtime: Runtime = Runtime()
    timings: list[Timing] = []
    calibration: Calibration | None = None
