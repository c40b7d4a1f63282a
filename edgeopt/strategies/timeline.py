"""The predicted timeline of one request: bars on the lanes of devices and links, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from edgeopt.plan import Interval, Stage, Transfer

__all__ = ["Bar", "lay_out", "link_lane", "single_pass"]


class Bar(NamedTuple):
    """What happens next: where, what, for how many seconds."""

    lane: str
    label: str
    seconds: float


def link_lane(source: str, destination: str) -> str:
    """Name the lane of a directed link."""
    return f"{source} → {destination}"


def lay_out(bars: Iterable[Bar]) -> list[Interval]:
    """Put bars one after the other: a single request computes in one place at a time."""
    intervals, now = [], 0.0
    for bar in bars:
        intervals.append(Interval(lane=bar.lane, label=bar.label, start_s=now, stop_s=now + bar.seconds))
        now += bar.seconds
    return intervals


def single_pass(stages: Sequence[Stage], transfers: Sequence[Transfer]) -> list[Bar]:
    """Bars of a request that passes every stage once."""
    before = {t.cut: t for t in transfers if t.purpose in ("input", "cut")}
    bars = []
    for stage in stages:
        if transfer := before.get(stage.start):
            bars.append(Bar(link_lane(transfer.source, transfer.destination), transfer.purpose, transfer.seconds))
        bars.append(Bar(stage.device, stage.elements, stage.compute_s))
    bars += [Bar(link_lane(t.source, t.destination), "output", t.seconds) for t in transfers if t.purpose == "output"]
    return bars
