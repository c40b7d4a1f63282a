"""Where a plan runs: one file per launcher, loaded when it is asked for."""

from __future__ import annotations

from importlib import import_module

from edgeopt.errors import Finding, InputError
from edgeopt.executor.launchers.base import Launcher

__all__ = ["LAUNCHERS", "launcher_named"]

_CLASSES = {
    "local": ("edgeopt.executor.launchers.local", "Local"),
    "emulated": ("edgeopt.executor.launchers.emulated", "Emulated"),
    "torchrun": ("edgeopt.executor.launchers.torchrun", "Torchrun"),
    "ray": ("edgeopt.executor.launchers.ray", "OnRay"),
}

#: What ``--on`` may say.
LAUNCHERS = tuple(_CLASSES)


def launcher_named(name: str) -> type[Launcher]:
    """Return the class of a launcher.

    Raises
    ------
    InputError
        There is none of that name.
    """
    if name not in _CLASSES:
        raise InputError(Finding("on", f"there is no launcher {name!r}", f"use one of {', '.join(LAUNCHERS)}"))
    module, attribute = _CLASSES[name]
    found: type[Launcher] = getattr(import_module(module), attribute)
    return found
