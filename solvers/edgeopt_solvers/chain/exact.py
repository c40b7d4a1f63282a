"""The default backend: the engine that fits the instance.

``edgeopt_solvers.chain.large`` knows special cases at scale; whatever it declines goes to the general engine.
"""

from __future__ import annotations

import time
from dataclasses import replace

from edgeopt_solvers.chain import general, large
from edgeopt_solvers.chain.instance import Chain
from edgeopt_solvers.chain.large.compiled import affordable
from edgeopt_solvers.result import Result
from edgeopt_solvers.solve import Options

__all__ = ["LARGE", "solve"]

#: Devices times elements from which on the engines for large instances are asked first: loading their compiled
#: loops costs more than a small instance takes here. A time limit too short to compile them falls back on the
#: general engine as well.
LARGE = 200


def solve(chain: Chain, options: Options) -> Result:
    """Solve exactly, with every feature."""
    engines = ["throughput"] if "throughput" in chain.weights else []
    engines += ["joint"] if chain.links_of("reserved").any() else []
    if chain.num_devices * chain.num_elements > LARGE and affordable(options.time_limit_s, *engines):
        started = time.perf_counter()
        result = large.try_solve(chain, options)
        if result is not None:
            return result
        if options.time_limit_s is not None:  # it may have tried
            left_s = options.time_limit_s - (time.perf_counter() - started)
            options = replace(options, time_limit_s=max(left_s, 1e-3))
    return general.solve(chain, options)
