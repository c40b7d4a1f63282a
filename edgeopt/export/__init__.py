"""A plan in other tools' words: one file per target, loaded when it is asked for.

================  =====================================================  ========================================
target            writes                                                 refuses
================  =====================================================  ========================================
accelerate        ``device_map``, JSON                                   classes whose module names are not known
torch-pipelining  split points and ranks, JSON                           those; a device with two segments
transformers      each rank's range of the pipeline plan's layers, JSON  those; a device with two segments
vllm              ``VLLM_PP_LAYER_PARTITION`` and the command            two segments; what does not fit there
llama.cpp         ``--tensor-split`` and ``--rpc``, a command            two segments; more than 15 devices
================  =====================================================  ========================================

All refuse what is no split of one language model, and stages that compute with different weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from edgeopt.errors import Finding, InputError
from edgeopt.export.base import Exported, split_of
from edgeopt.plan import Plan

__all__ = ["TARGETS", "Exported", "export_plan"]

_MODULES = {
    "accelerate": "accelerate",
    "torch-pipelining": "torch_pipelining",
    "transformers": "transformers",
    "vllm": "vllm",
    "llama.cpp": "llama_cpp",
}

#: What ``--to`` may say.
TARGETS = tuple(_MODULES)


def export_plan(plan: Plan, target: str, names: Mapping[str, str] | None = None) -> Exported:
    """Write a plan for another tool.

    Parameters
    ----------
    plan
        A language model split along its blocks.
    target
        One of :data:`TARGETS`.
    names
        What devices of the plan are called there: ``cuda:1`` or ``0`` for accelerate, an address for llama.cpp.

    Raises
    ------
    InputError
        There is no such target or device, two devices got one name, or the target cannot express the plan.
    """
    names = names or {}
    if target not in _MODULES:
        raise InputError(Finding("--to", f"there is no target {target!r}", f"use one of {', '.join(TARGETS)}"))
    module = import_module(f"edgeopt.export.{_MODULES[target]}")
    if names and not module.TAKES_NAMES:
        raise InputError(
            Finding("--device", f"{target} has no names for devices: its ranks follow the stages", "leave it out")
        )
    split = split_of(plan)
    findings = [
        Finding("--device", f"no stage of the plan runs on '{name}'", f"stages run on: {', '.join(split.devices)}")
        for name in names
        if name not in split.devices
    ]
    if len(set(names.values())) < len(names):
        said = ", ".join(f"{name}={value}" for name, value in names.items())
        findings.append(Finding("--device", f"two devices have one name in {said}", "name each of them otherwise"))
    if findings:
        raise InputError(findings)
    exported: Exported = module.export(split, names)
    return exported
