"""Memory beside what a model itself holds: the runtime's workspace, and what the allocator cannot use."""

from __future__ import annotations

from edgeopt.profiles.device import Device

__all__ = ["usable_bytes"]


def usable_bytes(device: Device) -> float:
    """Memory that a plan may count on: ``(memory - workspace) * (1 - fragmentation)``, not below nought."""
    if device.margin is None:
        return device.memory
    return max(0.0, device.memory - device.margin.workspace) * (1 - device.margin.fragmentation)
