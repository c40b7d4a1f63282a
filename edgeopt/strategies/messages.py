"""The messages of one request, told as the plan's transfers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from edgeopt.costs.links import LinkArrays
from edgeopt.plan import Transfer

__all__ = ["Hop", "hop_transfers"]


class Hop(NamedTuple):
    """All messages of a purpose from one device to another: indices of both, bytes in all, and how many they are."""

    purpose: str
    source: int
    destination: int
    num_bytes: float
    messages: float


def hop_transfers(hops: Iterable[Hop], names: Sequence[str], links: LinkArrays) -> list[Transfer]:
    """Return the transfers of hops between different, connected devices: each message waits a latency.

    Parameters
    ----------
    names : (D,)
        Of the devices.
    """
    return [
        Transfer(
            purpose=hop.purpose,
            source=names[hop.source],
            destination=names[hop.destination],
            bytes=hop.num_bytes,
            messages=hop.messages,
            seconds=hop.messages * float(links.latency_s[hop.source, hop.destination]) + hop.num_bytes / rate,
            rate_bytes_per_s=rate,
        )
        for hop in hops
        if hop.source != hop.destination and (rate := float(links.rate_bytes_per_s[hop.source, hop.destination])) > 0
    ]
