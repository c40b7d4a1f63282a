"""One file per technique: those bundled here by a table, those of other packages by the entry points of a group."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from edgeopt.strategies.base import Strategy

__all__ = ["BUNDLED", "GROUP", "Strategy", "get_strategy", "strategy_names"]

GROUP = "edgeopt.strategies"

#: Name → class, for what this package brings along; an entry point of the same name does not take its place.
BUNDLED = {
    "cascade": "edgeopt.strategies.cascade:Cascade",
    "hierarchical": "edgeopt.strategies.hierarchical:Hierarchical",
    "multi_stage": "edgeopt.strategies.multi_stage:MultiStage",
    "patch": "edgeopt.strategies.patch:Patch",
    "pipeline": "edgeopt.strategies.pipeline:Pipeline",
    "routing": "edgeopt.strategies.routing:Routing",
    "speculative": "edgeopt.strategies.speculative:Speculative",
    "split_diffusion": "edgeopt.strategies.split_diffusion:SplitDiffusion",
}


def strategy_names() -> list[str]:
    """Return the names of every installed strategy, sorted."""
    return sorted({*BUNDLED, *_points()})


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
    strategy: Strategy = _points()[name].load()()
    return strategy


@cache
def _points() -> dict[str, EntryPoint]:
    """Entry points by name; asked once: looking through all installed packages takes as long as a small solve."""
    return {point.name: point for point in reversed(tuple(entry_points(group=GROUP)))}
