"""Measure devices, links and models on the machine at hand, in fresh processes, into profiles with their source."""

from edgeopt.profiler.device import profile_device, profile_model
from edgeopt.profiler.link import LinkRequest, PeerLink, measure_link, measure_peer, profile_link, serve_peer

__all__ = [
    "LinkRequest", "PeerLink", "measure_link", "measure_peer", "profile_device", "profile_link",
    "profile_model", "serve_peer",
]  # fmt: skip
