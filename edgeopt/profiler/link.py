"""What a message between two processes of this machine costs: latency + bytes / rate."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from edgeopt.errors import Finding, InputError
from edgeopt.profiler.jobs import LinkJob, LinkSamples
from edgeopt.profiler.processes import run_jobs
from edgeopt.profiles.network import LinkQuality

__all__ = ["SIZES_BYTES", "LinkMeasurement", "fit_link", "measure_link", "profile_link"]

#: From a sampled token to the hidden states of a prompt. Larger messages cost more per byte than the fit says.
SIZES_BYTES = (8, 256, 2048, 8192, 32768, 131072, 262144, 524288, 1048576)


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """A fitted link and how well it fits.

    Attributes
    ----------
    quality
        Latency and rate.
    sizes_bytes, medians_s : (N,)
        What was measured.
    residuals : (N,)
        (fitted - measured) / measured at each size.
    """

    quality: LinkQuality
    sizes_bytes: tuple[int, ...]
    medians_s: tuple[float, ...]
    residuals: tuple[float, ...]


def fit_link(sizes_bytes: ArrayLike, seconds: ArrayLike) -> tuple[float, float]:
    """Fit ``seconds = latency + bytes / rate`` with small relative errors, few outliers aside.

    Iteratively reweighted least squares on relative residuals with Huber's weights; neither term is negative.

    Returns
    -------
    (latency_s, rate_bytes_per_s)
    """
    x, y = np.asarray(sizes_bytes, float), np.asarray(seconds, float)
    robust = np.ones_like(y)
    latency, slope = 0.0, 0.0
    for _ in range(50):
        weight = robust / y
        matrix = np.stack([weight, weight * x], axis=1)
        latency, slope = np.linalg.lstsq(matrix, weight * y, rcond=None)[0]
        if latency < 0:
            latency, slope = 0.0, float(np.sum(weight**2 * x * y) / np.sum((weight * x) ** 2))
        if slope <= 0:  # no size effect in the range: the rate is then only known from below
            latency, slope = float(np.median(y)), float(np.median(y)) / (100 * x.max())
        error = np.abs(latency + slope * x - y) / y
        scale = max(1.4826 * float(np.median(error)), 1e-9)
        robust = np.sqrt(np.minimum(1.0, 1.345 * scale / np.maximum(error, 1e-12)))
    return float(latency), float(1.0 / slope)


def measure_link(
    *,
    sizes_bytes: Sequence[int] = SIZES_BYTES,
    repeats: int = 40,
    gap_s: float = 0.002,
    threads: int = 1,
    timeout_s: float = 120.0,
    progress: Callable[[str], None] | None = None,
) -> LinkMeasurement:
    """Measure the link between two processes over the loopback interface and fit latency and rate.

    Parameters
    ----------
    sizes_bytes
        Messages to send; give the range that the plan's messages lie in.
    gap_s
        Seconds that the sender computes before each message.

    Raises
    ------
    InputError
        Fewer than two sizes, or no repeats.
    ExecutionError
        The processes cannot talk, or not within ``timeout_s``.
    """
    sizes = tuple(sorted(set(sizes_bytes)))
    if len(sizes) < 2 or sizes[0] < 1 or repeats < 1:
        raise InputError(Finding("sizes_bytes", "a line needs two sizes of at least 1 B, each sent once", "give more"))
    if progress:
        progress(f"link: {len(sizes)} message sizes from {sizes[0]} B to {sizes[-1]} B")
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "threads": threads,
            "store": str(Path(folder) / "store"),
            "sizes_bytes": list(sizes),
            "repeats": repeats,
            "gap_s": gap_s,
            "timeout_s": timeout_s,
        }
        sent, received = run_jobs([LinkJob(rank=rank, **common) for rank in (0, 1)], LinkSamples, timeout_s)
    medians = np.median(np.array(received.moments_s) - np.array(sent.moments_s), axis=1)
    latency_s, rate = fit_link(sizes, medians)
    fitted = latency_s + np.array(sizes) / rate
    return LinkMeasurement(
        quality=LinkQuality(rate=rate, latency=latency_s),
        sizes_bytes=sizes,
        medians_s=tuple(medians.tolist()),
        residuals=tuple(((fitted - medians) / medians).tolist()),
    )


def profile_link(
    *,
    sizes_bytes: Sequence[int] = SIZES_BYTES,
    repeats: int = 40,
    timeout_s: float = 120.0,
    progress: Callable[[str], None] | None = None,
) -> LinkQuality:
    """Measure the link between two processes of this machine; see :func:`measure_link` for how well it fits."""
    return measure_link(sizes_bytes=sizes_bytes, repeats=repeats, timeout_s=timeout_s, progress=progress).quality
