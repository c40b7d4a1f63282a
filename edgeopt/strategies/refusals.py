"""Refusals that several techniques have in common, in the same words: each says why, or ``None``."""

from __future__ import annotations

from edgeopt.profiles.problem import Problem, TextWorkload

__all__ = ["of_batches", "of_goals", "of_reserved_media", "of_stages"]


def of_stages(name: str, problem: Problem, *, counts: bool = False) -> str | None:
    """Refuse limits on a chain of stages where a technique has none; ``counts``: ``max_stages`` means something."""
    limits = problem.constraints
    asked = {
        "pin": limits.pin, "first": limits.first, "last": limits.last, "max_stages": limits.max_stages and not counts,
        "min_segment": limits.min_segment > 1,
    }  # fmt: skip
    found = [f"constraints.{key}" for key, value in asked.items() if value]
    return f"{name} has no chain of stages: nothing to pin or count ({', '.join(found)})" if found else None


def of_goals(name: str, problem: Problem, *objectives: str) -> str | None:
    """Refuse all objectives but these, and budgets of what a technique does not weigh against time."""
    limits = problem.constraints
    if problem.objective in objectives and limits.energy is None and not limits.quality:
        return None
    return f"{name} weighs neither energy nor quality against time (objective: {' or '.join(objectives)})"


def of_batches(name: str, load: TextWorkload) -> str | None:
    """Refuse several sequences at once, and sampled ones."""
    if load.batch == 1 and load.temperature == 0:
        return None
    return f"{name} answers one query at a time, by the likeliest tokens (workload.batch, temperature)"


def of_reserved_media(name: str, problem: Problem) -> str | None:
    """Refuse media of which each link keeps a share of its own."""
    if any(medium.sharing == "reserved" for medium in problem.network.media.values()):
        return f"{name} reserves no share of a medium, and the network's is shared that way"
    return None
