"""One file per technique, found through the entry-point group ``edgeopt.strategies``: other packages can add theirs."""

from __future__ import annotations

from importlib.metadata import entry_points

from edgeopt.strategies.base import Strategy

__all__ = ["GROUP", "Strategy", "get_strategy", "strategy_names"]

GROUP = "edgeopt.strategies"


def strategy_names() -> list[str]:
    """Return the names of every installed strategy, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def get_strategy(name: str) -> Strategy:
    """Load a strategy by name.

    Raises
    ------
    KeyError
        No installed package offers it.
    """
    for point in entry_points(group=GROUP):
        if point.name == name:
            strategy: Strategy = point.load()()
            return strategy
    raise KeyError(name)
