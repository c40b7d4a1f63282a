"""Links between devices as matrices of rate and latency, and the media they share.

A radio link's rate is Shannon's over a log-distance path loss; :class:`edgeopt.profiles.network.Radio` has the formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.profiles.device import Device
from edgeopt.profiles.network import LinkQuality, Network, Radio

__all__ = ["LinkArrays", "link_arrays", "link_matrices", "shannon_bytes_per_s", "signal_to_noise", "waiting_links"]

SPEED_OF_LIGHT = 299_792_458.0  # m/s

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinkArrays:
    """Directed links of D devices over G media, in the words of :class:`edgeopt_solvers.chain.Chain`.

    Attributes
    ----------
    rate_bytes_per_s, latency_s : (D, D)
        Rates with the whole medium; rate 0: no link.
    medium : (D, D) of int
        Index into ``media``; -1: the link is its own.
    media : (G,)
        ``time_shared`` or ``reserved``.
    names : (G,)
        What the network calls its media.
    band_hz : (G,)
        Bandwidth that radio media turn into data (0: fixed rates): the band times the radio's efficiency, so that
        ``band_hz * log2(1 + snr)`` is what a link sends in bit/s.
    snr : (D, D)
        Received power over the noise in the whole band, 0 where there is no radio link.
    """

    rate_bytes_per_s: Array
    latency_s: Array
    medium: NDArray[np.int64]
    media: tuple[str, ...]
    names: tuple[str, ...]
    band_hz: Array
    snr: Array

    def arguments(self) -> dict[str, Any]:
        """Return them as arguments of a chain."""
        links = {"rate_bytes_per_s": self.rate_bytes_per_s, "latency_s": self.latency_s}
        if not self.media:
            return links
        return links | {"medium": self.medium, "media": self.media, "band_hz": self.band_hz, "snr": self.snr}


def link_arrays(network: Network, devices: Sequence[str]) -> LinkArrays:
    """Return the links among ``devices``: listed ones first, the default elsewhere, rate 0 for none."""
    count, names = len(devices), tuple(network.media)
    rate, latency, snr = np.zeros((count, count)), np.zeros((count, count)), np.zeros((count, count))
    medium = np.full((count, count), -1, dtype=np.int64)
    radios = [network.media[name].radio for name in names]
    index = {name: i for i, name in enumerate(devices)}

    def put(where: Any, quality: LinkQuality) -> None:
        latency[where] = quality.latency
        medium[where] = -1 if quality.medium is None else names.index(quality.medium)
        radio = None if quality.medium is None else network.media[quality.medium].radio
        if radio is None:
            snr[where], rate[where] = 0.0, quality.rate
        else:
            snr[where] = signal_to_noise(radio, quality)
            rate[where] = shannon_bytes_per_s(radio.efficiency * radio.bandwidth, float(np.max(snr[where])))

    if network.default is not None and count > 1:
        put(..., network.default)
    for link in network.links:
        i, j = (index[str(name)] for name in link.between or (link.from_, link.to))
        for pair in [(i, j), (j, i)] if link.between else [(i, j)]:
            put(pair, link)
    for matrix in (rate, latency, snr):
        np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(medium, -1)
    band = np.array([radio.efficiency * radio.bandwidth if radio else 0.0 for radio in radios])
    media = tuple(network.media[name].sharing for name in names)
    return LinkArrays(rate, latency, medium, media, names, band, snr)


def waiting_links(network: Network, devices: Sequence[Device]) -> LinkArrays:
    """Return :func:`link_arrays` of parties that wait for each other's messages.

    Both ends take longer than where links are timed, by what ``messages.rested`` of their profiles says.
    """
    links = link_arrays(network, [device.name for device in devices])
    rested_s = np.array([device.messages.rested if device.messages else 0.0 for device in devices])
    both_s = np.add.outer(rested_s, rested_s) * (1 - np.eye(len(devices)))
    return replace(links, latency_s=links.latency_s + both_s)


def link_matrices(network: Network, devices: Sequence[str]) -> tuple[Array, Array]:
    """Return (rate_bytes_per_s, latency_s) of :func:`link_arrays`."""
    links = link_arrays(network, devices)
    return links.rate_bytes_per_s, links.latency_s


def signal_to_noise(radio: Radio, link: LinkQuality) -> float:
    """Received power over the noise in the whole band, as a ratio."""
    assert link.distance is not None, "checked when the network was read"
    reference_db = radio.reference_loss
    if reference_db is None:
        reference_db = 20 * math.log10(4 * math.pi * radio.reference_distance * radio.frequency / SPEED_OF_LIGHT)
    further = max(link.distance / radio.reference_distance, 1.0)
    loss_db = reference_db + 10 * radio.path_loss_exponent * math.log10(further)
    power_dbm = radio.transmit_power if link.transmit_power is None else link.transmit_power
    noise_dbm = radio.noise_density + 10 * math.log10(radio.bandwidth) + radio.noise_figure
    return 10 ** ((power_dbm - loss_db - noise_dbm) / 10)


def shannon_bytes_per_s(band_hz: float, snr: float, share: float = 1.0) -> float:
    """Rate with a share of the band; the same power over less noise: ``share * band * log2(1 + snr / share) / 8``."""
    return share * band_hz * math.log1p(snr / share) / math.log(2) / 8 if share > 0 else 0.0
