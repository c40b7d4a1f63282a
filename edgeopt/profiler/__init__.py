"""Measure devices, links and models on the machine at hand, in fresh processes, into profiles with their source."""

from edgeopt.profiler.device import profile_device
from edgeopt.profiler.link import LinkMeasurement, measure_link, profile_link

__all__ = ["LinkMeasurement", "measure_link", "profile_device", "profile_link"]
