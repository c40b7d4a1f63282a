"""Network: directed links between devices, the media they share, and the radio that gives a link its rate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgeopt.profiles.base import Profile, Strict
from edgeopt.profiles.calibration import Calibration
from edgeopt.units import (
    Bytes,
    Decibel,
    DecibelMilliwatt,
    DecibelMilliwattPerHertz,
    Fraction,
    Hertz,
    Metres,
    NonNegativeSeconds,
    Quantity,
)  # fmt: skip

__all__ = ["Link", "LinkFit", "LinkQuality", "Medium", "Network", "Radio"]

_RATE = Quantity(
    "a data rate", "B/s", ("50 Mbit/s", "1 Gbit/s", "100 MB/s"), zero_mend="leave a link out where there is none"
)


class LinkFit(Strict):
    """How ``latency + q / rate`` was fitted to measured messages, one entry per size in each list.

    ``medians`` and ``spreads`` (interquartile ranges) are seconds, ``residuals`` (fitted - measured) / measured. The
    receiver had slept for ``pause`` before every message, as in a pipeline; with messages in quick succession the same
    link showed ``awake_latency`` and ``awake_rate``. ``clock`` says whether both ends read one clock, or the offset
    between two was estimated from round trips of small messages, taken as equally long both ways.
    """

    sizes: list[Bytes] = Field(min_length=2)
    medians: list[float]
    spreads: list[float]
    residuals: list[float]
    repeats: int = Field(ge=1)
    pause: NonNegativeSeconds
    awake_latency: NonNegativeSeconds
    awake_rate: Annotated[float, _RATE]
    clock: Literal["shared", "estimated"]


class LinkQuality(Strict):
    """What a transfer of q bytes costs: ``latency + q / rate``.

    A link of a radio ``medium`` has no ``rate`` of its own: it follows from ``distance`` and ``transmit_power``
    (default: the medium's). ``jitter`` is the interquartile range of what messages took beyond their size's median.
    """

    rate: Annotated[float, _RATE] | None = None
    latency: NonNegativeSeconds
    medium: str | None = None
    distance: Metres | None = None
    transmit_power: DecibelMilliwatt | None = None
    jitter: NonNegativeSeconds | None = None
    fit: LinkFit | None = None


class Link(LinkQuality):
    """A link ``between`` two devices (both directions), or directed ``from`` one ``to`` another."""

    between: tuple[str, str] | None = None
    from_: str | None = Field(default=None, alias="from")
    to: str | None = None


class Radio(Strict):
    """Rates by Shannon's formula over a log-distance path loss.

    Received over noise power, in dB: ``transmit_power - path_loss(distance) - noise_density - 10 log10(bandwidth) -
    noise_figure``, with ``path_loss = reference_loss + 10 path_loss_exponent log10(distance / reference_distance)``,
    never less than ``reference_loss``. Without ``reference_loss`` it is that of free space at ``frequency``. A link
    sends ``efficiency * bandwidth * log2(1 + snr)`` bit/s: ``efficiency`` is what protocols and coding leave of
    Shannon's rate, which no radio reaches.

    Friis, Proc. IRE 34(5), 1946, https://doi.org/10.1109/JRPROC.1946.234568; Rappaport, Wireless Communications, 2002,
    section 4.9; Shannon, Proc. IRE 37(1), 1949, https://doi.org/10.1109/JRPROC.1949.232969.
    """

    bandwidth: Hertz
    frequency: Hertz
    transmit_power: DecibelMilliwatt
    path_loss_exponent: float = Field(gt=0, le=10)
    reference_distance: Metres
    reference_loss: Decibel | None = None
    noise_density: DecibelMilliwattPerHertz
    noise_figure: Decibel
    efficiency: Fraction


class Medium(Strict):
    """An access point, a cell, a bus: what several links send over.

    ``time_shared``: whoever sends has all of it. ``reserved``: every transfer of a plan holds a share of it for the
    whole session, and shares add up to at most 1.
    """

    sharing: Literal["time_shared", "reserved"]
    radio: Radio | None = None


class Network(Profile):
    """Links by device name; ``default`` serves every pair that is not listed. Absent: no link."""

    kind: Literal["network"] = "network"
    media: dict[str, Medium] = {}
    default: LinkQuality | None = None
    links: list[Link] = []
    calibration: Calibration | None = None
