"""What a plan says about the machine a stage runs on: accelerator and threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgeopt.errors import Finding, InputError
from edgeopt.plan import Plan
from edgeopt.profiles.device import Device

__all__ = ["stage_device", "stage_threads", "threads_restored"]


def _profile(plan: Plan, stage: int) -> Device:
    name = plan.stages[stage].device
    return next(device for device in plan.problem.devices if device.name == name)


def stage_device(plan: Plan, stage: int) -> torch.device:
    """Return where a stage computes in its process.

    Raises
    ------
    InputError
        The device's accelerator is not in this machine.
    """
    profile = _profile(plan, stage)
    kind = profile.runtime.accelerator
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[kind]:
        raise InputError(
            Finding(
                f"devices.{profile.name}.runtime.accelerator",
                f"stage {stage} wants {kind}, which torch does not see on this machine",
                "set `accelerator: cpu`, or run on the machine that has it",
            )
        )
    return torch.device(kind)


def stage_threads(plan: Plan, stage: int) -> int | None:
    """Return how many threads a stage computes with, ``None`` where its device leaves that open."""
    return _profile(plan, stage).runtime.threads


@contextmanager
def threads_restored() -> Iterator[None]:
    """Put the number of threads back on leaving."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
