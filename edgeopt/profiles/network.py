"""Network: directed links between devices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgeopt.profiles.base import Profile, Strict
from edgeopt.units import NonNegativeSeconds, Quantity

__all__ = ["Link", "LinkQuality", "Network"]

_RATE = Quantity(
    "a data rate", "B/s", ("50 Mbit/s", "1 Gbit/s", "100 MB/s"), zero_mend="leave a link out where there is none"
)


class LinkQuality(Strict):
    """What a transfer of q bytes costs: ``latency + q / rate``."""

    rate: Annotated[float, _RATE]
    latency: NonNegativeSeconds


class Link(LinkQuality):
    """A link ``between`` two devices (both directions), or directed ``from`` one ``to`` another."""

    between: tuple[str, str] | None = None
    from_: str | None = Field(default=None, alias="from")
    to: str | None = None


class Network(Profile):
    """Links by device name; ``default`` serves every pair that is not listed. Absent: no link."""

    kind: Literal["network"] = "network"
    default: LinkQuality | None = None
    links: list[Link] = []
