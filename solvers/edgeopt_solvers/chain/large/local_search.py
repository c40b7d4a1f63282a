"""Annealing over device orders from a given plan; deterministic for a seed."""

from __future__ import annotations

import numpy as np

from edgeopt_solvers.chain.large import kernels_order
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.view import Path, View

__all__ = ["improve"]

#: Starting temperature as a fraction of the mean cost of a stage; falls linearly to 0.
HEAT = 0.12


def improve(
    view: View, path: Path, clock: Clock, *, moves: int, seed: int, bottleneck: bool = False
) -> tuple[float, Path]:
    """Return a plan at least as good as ``path`` (its cost recomputed by the order's dynamic program).

    Parameters
    ----------
    moves
        Changes tried; each recomputes only the stages between the first and the last it touches.
    bottleneck
        Whether the cost is the largest term instead of the sum.
    """
    order = np.zeros(view.num_elements + 2, np.int64)
    order[: len(path)] = [device for device, _ in path]
    cost, stages, length, _ = kernels_order.anneal(
        view.prefix, view.last_end, view.min_segment, view.link, view.page, view.enter, view.leave, view.copies,
        bottleneck, order, len(path), moves, HEAT, seed % (1 << 32), clock.stop,
    )  # fmt: skip
    return float(cost), [(int(device), int(end)) for device, end in stages[:length]]
