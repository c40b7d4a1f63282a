"""One file per technique: those bundled here by a table, those of other packages by the entry points of a group."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from edgeopt.strategies.base import Strategy

__all__ = ["BUNDLED", "GROUP", "Strategy", "get_strategy", "strategy_names"]

GROUP = "edgeopt.strategies"

#: Name → class, for what this package brings along; an entry point of the same name does not take its place.
BUNDLED = {
    "multi_stage": "edgeopt.strategies.multi_stage:MultiStage",
    "pipeline": "edgeopt.strategies.pipeline:Pipeline",
    "speculative": "edgeopt.strategies.speculative:Speculative",
}


def strategy_names() -> list[str]:
    """Return the names of every installed strategy, sorted."""
    return sorted({*BUNDLED, *(point.name for point in entry_points(group=GROUP))})


def get_strategy(name: str) -> Strategy:
    """Load a strategy by name.

    Raises
    ------
    KeyError
        No installed package offers it.
    """
    if name in BUNDLED:
        module, _, attribute = BUNDLED[name].partition(":")
        bundled: Strategy = getattr(import_module(module), attribute)()
        return bundled
    for point in entry_points(group=GROUP, name=name):
        strategy: Strategy = point.load()()
        return strategy
    raise KeyError(name)
