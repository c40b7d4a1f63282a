"""What a message between two processes costs: latency + bytes / rate, on one machine or between two.

Two figures are taken: with messages in quick succession, and after pauses in which the receiver sleeps. A pipeline's
receiver sleeps while other stages compute, so the second is what a profile says.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeopt.errors import ExecutionError, Finding, InputError
from edgeopt.executor.meeting import Meeting, listen
from edgeopt.profiler.jobs import LinkJob, LinkRun, LinkSamples
from edgeopt.profiler.processes import run_jobs
from edgeopt.profiles.network import LinkFit, LinkQuality

__all__ = [
    "SIZES_BYTES", "LinkRequest", "PeerLink", "clock_offsets_s", "fit_link", "measure_link", "measure_peer",
    "profile_link", "serve_peer",
]  # fmt: skip

#: From a sampled token to the hidden states of a prompt. Larger messages cost more per byte than the fit says.
SIZES_BYTES = (8, 256, 2048, 8192, 32768, 131072, 262144, 524288, 1048576)

Array = NDArray[np.float64]


class LinkRequest(BaseModel):
    """What to measure; it also travels to the other machine, which checks it again.

    ``pause_s`` is how long the receiver sleeps before each message of the profile's own figures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sizes_bytes: list[int] = Field(default=list(SIZES_BYTES), max_length=64)
    repeats: int = Field(default=40, ge=1, le=10_000)
    pause_s: float = Field(default=0.02, ge=0, le=10)
    timeout_s: float = Field(default=120.0, gt=0, le=86_400)

    def checked(self) -> LinkRequest:
        """Return the request with its sizes sorted, each once.

        Raises
        ------
        InputError
            Fewer than two sizes, or one that no message has.
        """
        sizes = sorted(set(self.sizes_bytes))
        if len(sizes) < 2 or sizes[0] < 1 or sizes[-1] > 2**28:
            mend = "give at least two, each from 1 B to 256 MiB"
            raise InputError(Finding("sizes_bytes", f"a line cannot be drawn through {sizes} B", mend))
        return self.model_copy(update={"sizes_bytes": sizes})


@dataclass(frozen=True, slots=True)
class PeerLink:
    """A link between two machines, measured both ways."""

    there: LinkQuality
    back: LinkQuality
    own_address: str
    peer_address: str


def fit_link(sizes_bytes: ArrayLike, seconds: ArrayLike) -> tuple[float, float]:
    """Fit ``seconds = latency + bytes / rate`` with small relative errors, few outliers aside.

    The line through two of the points that is nearest to all (sum of absolute logarithms) says which points to trust;
    iteratively reweighted least squares on relative residuals with Cauchy's weights refines it. Small messages move
    the line most, so those that a token bucket lets pass at once would bend it for large ones, too, if any weight were
    left to them. Neither term is negative.

    Returns
    -------
    (latency_s, rate_bytes_per_s)
    """
    x, y = np.asarray(sizes_bytes, float), np.asarray(seconds, float)
    latency, slope = _line_through_two(x, y)
    # The scale stays that of the first line: taken anew it would grow with every step towards the outliers.
    scale = max(1.4826 * float(np.median(np.abs(latency + slope * x - y) / y)), 1e-9)
    for _ in range(30):
        error = np.abs(latency + slope * x - y) / y
        weight = 1.0 / (np.sqrt(1.0 + (error / (2.385 * scale)) ** 2) * y)
        latency, slope = np.linalg.lstsq(np.stack([weight, weight * x], axis=1), weight * y, rcond=None)[0]
        if latency < 0:
            latency, slope = 0.0, float(np.sum(weight**2 * x * y) / np.sum((weight * x) ** 2))
        if slope <= 0:
            latency, slope = _flat(x, y)
    return float(latency), float(1.0 / slope)


def _line_through_two(x: Array, y: Array) -> tuple[float, float]:
    """Latency and seconds per byte of the best of all lines through two points, none of whose terms is negative."""
    lines = [_flat(x, y)]
    for i, j in itertools.combinations(range(len(x)), 2):
        slope = (y[j] - y[i]) / (x[j] - x[i])
        latency = y[i] - slope * x[i]
        if slope > 0:
            lines.append((float(latency), float(slope)) if latency >= 0 else (0.0, float(y[j] / x[j])))
    return min(lines, key=lambda line: float(np.abs(np.log((line[0] + line[1] * x) / y)).sum()))


def _flat(x: Array, y: Array) -> tuple[float, float]:
    """No size effect in the range: the rate is then only known from below."""
    return float(np.median(y)), float(np.median(y)) / (100 * x.max())


def clock_offsets_s(here: LinkRun, there: LinkRun) -> Array:
    """Rank 1's clock minus rank 0's before each repeat, from the quickest ping: its two ways count as equally long.

    Off by at most half of that ping's round trip; Mills, RFC 5905, section 8.

    Returns
    -------
    ndarray of shape (repeats,)
    """
    offsets = []
    for sent, answered in zip(here.pings_s, there.pings_s, strict=True):
        start, stop = np.array(sent).T
        middle = np.array(answered)[:, 0]
        best = int(np.argmin(stop - start))
        offsets.append(float(middle[best] - (start[best] + stop[best]) / 2))
    return np.array(offsets)


def measure_link(request: LinkRequest | None = None, progress: Callable[[str], None] | None = None) -> LinkQuality:
    """Measure the link between two processes of this machine over its loopback interface.

    Raises
    ------
    InputError
        A request without a line to fit.
    ExecutionError
        The processes cannot talk, or not in time.
    """
    asked = (request or LinkRequest()).checked()
    _say(progress, asked)
    with listen("127.0.0.1", 0) as listener:
        serving = _job(asked, 1, "127.0.0.1", listener, secrets.token_hex(16), both_ways=False)
        jobs = [serving.model_copy(update={"rank": 0, "listen_fd": None}), serving]
        sent, received = run_jobs(jobs, LinkSamples, asked.timeout_s)
    return _quality(asked, sent, received, sender=0, clock="shared")


def profile_link(**options: Any) -> LinkQuality:
    """Measure loopback with the fields of :class:`LinkRequest` as keywords, and ``progress``."""
    progress = options.pop("progress", None)
    return measure_link(_request(options), progress)


def measure_peer(
    host: str, port: int, token: str, request: LinkRequest, progress: Callable[[str], None] | None = None
) -> PeerLink:
    """Measure the link to a machine on which :func:`serve_peer` waits, there and back.

    Raises
    ------
    InputError
        A request without a line to fit.
    ExecutionError
        Nobody waits there, the token is another, or time ran out.
    """
    asked = request.checked()
    _say(progress, asked)
    meeting = Meeting.connect(host, port, token, asked.model_dump(), time.monotonic() + asked.timeout_s)
    try:
        job = LinkJob(
            rank=0, own_address=meeting.own_address, address=meeting.peer_address, port=port, **_common(asked, token),
            both_ways=True,
        )  # fmt: skip
        (here,) = run_jobs([job], LinkSamples, asked.timeout_s)
        answer = meeting.receive()
        if "failure" in answer:
            raise ExecutionError(f"the other machine could not measure: {answer['failure']}")
        there = LinkSamples.model_validate(answer)
    except ValidationError as error:
        raise ExecutionError("the other machine answered with something else than samples") from error
    finally:
        meeting.close()
    return PeerLink(
        there=_quality(asked, here, there, sender=0, clock="estimated"),
        back=_quality(asked, here, there, sender=1, clock="estimated"),
        own_address=job.own_address,
        peer_address=job.address,
    )


def serve_peer(
    listener: socket.socket, token: str, timeout_s: float, progress: Callable[[str], None] | None = None
) -> str:
    """Be the other end for one measurement by :func:`measure_peer`; return the address that it came from.

    Raises
    ------
    ExecutionError
        Nobody with the token came in time, or the measurement failed.
    """
    meeting, request = Meeting.accept(listener, token, time.monotonic() + timeout_s)
    try:
        try:
            asked = LinkRequest.model_validate(request).checked()
            if progress:
                progress(f"link: measuring with {meeting.peer_address}")
            job = _job(asked, 1, meeting.own_address, listener, token, both_ways=True)
            (samples,) = run_jobs([job], LinkSamples, min(timeout_s, asked.timeout_s))
        except (ValueError, ExecutionError) as error:
            meeting.send({"failure": str(error).splitlines()[0]})
            raise
        meeting.send(samples.model_dump())
        return meeting.peer_address
    finally:
        meeting.close()


def _request(options: dict[str, Any]) -> LinkRequest:
    try:
        return LinkRequest(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(Finding(str(first["loc"][0]), f"{first['input']!r}: {first['msg']}", "mend it")) from error


def _say(progress: Callable[[str], None] | None, asked: LinkRequest) -> None:
    if progress:
        sizes = asked.sizes_bytes
        progress(f"link: {len(sizes)} message sizes from {sizes[0]} B to {sizes[-1]} B")


def _common(asked: LinkRequest, token: str) -> dict[str, Any]:
    return {
        "threads": 1,
        "token": token,
        "sizes_bytes": asked.sizes_bytes,
        "repeats": asked.repeats,
        "pauses_s": [0.0, asked.pause_s],
        "timeout_s": asked.timeout_s,
    }


def _job(
    asked: LinkRequest, rank: Literal[0, 1], address: str, listener: socket.socket, token: str, *, both_ways: bool
) -> LinkJob:
    """Return the job of an end that meets at the listener's port and serves it."""
    return LinkJob(
        rank=rank, own_address=address, address=address, port=listener.getsockname()[1], listen_fd=listener.fileno(),
        both_ways=both_ways, **_common(asked, token),
    )  # fmt: skip


def _quality(
    asked: LinkRequest, zero: LinkSamples, one: LinkSamples, *, sender: int, clock: Literal["shared", "estimated"]
) -> LinkQuality:
    """Fit the messages that ``sender`` sent: with pauses, and beside it without."""
    found = []
    for a, b in zip(zero.runs, one.runs, strict=True):
        if a.sender == sender:
            elapsed = np.array(b.moments_s) - np.array(a.moments_s)
            if clock == "estimated":
                elapsed -= clock_offsets_s(a, b)[:, None]
            seconds = elapsed if sender == 0 else -elapsed
            found.append(np.maximum(seconds, 1e-9))  # an estimated clock can be off by more than a message takes
    awake, asleep = found
    medians = np.median(asleep, axis=0)
    latency_s, rate = fit_link(asked.sizes_bytes, medians)
    awake_latency_s, awake_rate = fit_link(asked.sizes_bytes, np.median(awake, axis=0))
    fitted = latency_s + np.array(asked.sizes_bytes) / rate
    spreads = np.subtract(*np.percentile(asleep, [75, 25], axis=0))
    jitter = float(np.subtract(*np.percentile(asleep - medians, [75, 25])))
    return LinkQuality(
        rate=rate,
        latency=latency_s,
        jitter=jitter,
        fit=LinkFit(
            sizes=[float(size) for size in asked.sizes_bytes],
            medians=medians.tolist(),
            spreads=spreads.tolist(),
            residuals=((fitted - medians) / medians).tolist(),
            repeats=asked.repeats,
            pause=asked.pause_s,
            awake_latency=awake_latency_s,
            awake_rate=awake_rate,
            clock=clock,
        ),
    )
