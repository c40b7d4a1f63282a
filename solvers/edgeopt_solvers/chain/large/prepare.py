"""Compile ahead of time what the engines for large chains compile: a scheduler should not meet it in its first hour."""

from __future__ import annotations

import math
import time

import numpy as np

from edgeopt_solvers.chain.instance import Chain
from edgeopt_solvers.chain.large import labels, local_search, try_solve
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.prices import Memory, raise_prices
from edgeopt_solvers.chain.large.relaxation import Relaxation
from edgeopt_solvers.chain.large.view import additive_view
from edgeopt_solvers.solve import Options

__all__ = ["prepare"]

#: More than any plan of the chains below costs.
ABOVE = 1e3


def prepare() -> float:
    """Compile every loop of the chain engines, or load it where an earlier process has; return the seconds it took.

    Compiling takes about 15 s once per machine and version; numba keeps the result beside the installed package, or in
    ``NUMBA_CACHE_DIR``. Without this call the first large instance whose time limit allows for it pays, and instances
    with shorter limits go to the general engine until then.
    """
    started = time.perf_counter()
    plain = _drawn()
    for chain in (plain, _drawn(reserved=True), _drawn(equal=True), _drawn(objective="throughput")):
        try_solve(chain, Options())
    view = additive_view(plain)
    into = np.ascontiguousarray(view.link.transpose(0, 2, 1))
    with Clock(None) as clock:  # easy chains end before these are asked
        prices = raise_prices(view, into, clock, start=None, target=math.inf, iterations=3)
        memory = Memory(view, prices)
        memory.improve(ABOVE, 0.0, 2, clock)
        _, completions = memory.completions(ABOVE, clock)
        assert completions is not None
        found = labels.search(view, completions, clock, incumbent=ABOVE, tolerance=0.0, width=50)
        local_search.improve(view, found.path, clock, moves=50, seed=0)
        Relaxation(view, clock).remaining(ABOVE)
    return time.perf_counter() - started


def _drawn(*, reserved: bool = False, equal: bool = False, objective: str = "latency") -> Chain:
    """A chain of 12 devices and 30 elements in which some five devices are needed."""
    rng = np.random.default_rng(0)
    D, L = 12, 30
    send = rng.uniform(1.0, 2.0, D)
    rate = 1.0 / (send[:, None] + send[None, :]) if equal else rng.uniform(0.2, 1.0, (D, D))
    np.fill_diagonal(rate, np.inf)
    return Chain(
        compute_s=np.repeat(rng.uniform(0.1, 1.0, (D, 1)), L, axis=1) * (1.0 if equal else rng.uniform(0.5, 1.5, L)),
        cut_bytes=np.ones(L + 1) if equal else rng.uniform(0.2, 1.0, L + 1),
        rate_bytes_per_s=rate, latency_s=np.zeros((D, D)), source=None, objective=objective,
        memory_bytes=rng.uniform(5.0, 9.0, D), resident_bytes=np.ones(L),
        medium=np.full((D, D), 0 if reserved else -1, np.int64), media=["reserved"] if reserved else [],
    )  # fmt: skip
