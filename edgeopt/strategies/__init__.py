"""One file per technique, found through the entry-point group ``edgeopt.strategies``: other packages can add theirs."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from edgeopt.strategies.base import Strategy

__all__ = ["GROUP", "Strategy", "get_strategy", "strategy_names"]

GROUP = "edgeopt.strategies"


def strategy_names() -> list[str]:
    """Return the names of every installed strategy, sorted."""
    return sorted(_points())


def get_strategy(name: str) -> Strategy:
    """Load a strategy by name.

    Raises
    ------
    KeyError
        No installed package offers it.
    """
    strategy: Strategy = _points()[name].load()()
    return strategy


@cache
def _points() -> dict[str, EntryPoint]:
    """Entry points by name; asked once: looking through all installed packages takes as long as a small solve."""
    return {point.name: point for point in reversed(tuple(entry_points(group=GROUP)))}
