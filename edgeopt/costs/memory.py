"""Memory beside what a model itself holds: the runtime's workspace, and what the allocator cannot use."""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt.profiles.device import Device

__all__ = ["MemoryTerms", "memory_terms", "usable_bytes"]


@dataclass(frozen=True, slots=True)
class MemoryTerms:
    """Bytes of a device's memory by use; with ``free`` they add up to the memory in the profile.

    ``free`` is negative where the demand does not fit. ``basis`` says whether workspace and fragmentation were
    measured or assumed, ``None`` when the profile has no margin and both are nought.
    """

    demand: float
    workspace: float
    fragmentation: float
    free: float
    basis: str | None


def usable_bytes(device: Device) -> float:
    """Memory that a plan may count on: ``(memory - workspace) * (1 - fragmentation)``, not below nought."""
    if device.margin is None:
        return device.memory
    return max(0.0, device.memory - device.margin.workspace) * (1 - device.margin.fragmentation)


def memory_terms(device: Device, demand_bytes: float) -> MemoryTerms:
    """Split a device's memory when weights, caches and activations take ``demand_bytes`` of it."""
    usable = usable_bytes(device)
    workspace = min(device.margin.workspace, device.memory) if device.margin else 0.0
    return MemoryTerms(
        demand=demand_bytes,
        workspace=workspace,
        fragmentation=device.memory - workspace - usable,
        free=usable - demand_bytes,
        basis=device.margin.basis if device.margin else None,
    )
