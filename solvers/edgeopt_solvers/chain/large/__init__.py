"""Chains too large for the general engine: one variant, each device once, a sum or the largest term as objective.

``view`` turns an instance into arrays; ``latency`` proves sums (prices, memory, labels, local search), ``threshold``
proves periods, ``knapsack`` equal layers behind one access point, ``joint`` sums with
one reserved medium. Compiled code is imported only when :func:`try_solve` takes an instance on.
"""

from __future__ import annotations

import numpy as np

from edgeopt_solvers.chain.instance import Chain
from edgeopt_solvers.result import Result
from edgeopt_solvers.solve import Options

__all__ = ["supports", "supports_joint", "try_solve"]


def supports(chain: Chain) -> bool:
    """Whether the large engines know every feature of the instance."""
    return _supports_but_shares(chain) and not chain.links_of("reserved").any()


def supports_joint(chain: Chain) -> bool:
    """Whether all that keeps an instance from :func:`supports` is one reserved medium with fixed rates."""
    used = np.unique(chain.medium[chain.links_of("reserved")])
    fixed = not (chain.is_radio & chain.links_of("reserved")).any()
    return len(used) == 1 and fixed and "throughput" not in chain.weights and _supports_but_shares(chain)


def _supports_but_shares(chain: Chain) -> bool:
    weights = set(chain.weights)
    additive = weights <= {"latency", "energy"}
    loops = (chain.loop_bytes > 0 or chain.loop_messages > 0) and chain.num_devices > 1
    limits = (chain.max_latency_s, chain.max_period_s, chain.max_energy_j, chain.max_quality_loss, chain.max_stages)
    return (
        chain.num_variants == 1
        and chain.reuse == "once"
        and (additive or (weights == {"throughput"} and not chain.charges_loads))
        and not loops
        and all(limit is None for limit in limits)
        and not chain.handoff_loss.any()
        and (additive or "time_shared" not in chain.media)
    )


def try_solve(chain: Chain, options: Options) -> Result | None:
    """Solve an instance of any size, or return ``None`` when it has a feature outside :func:`supports`."""
    if supports_joint(chain):
        from edgeopt_solvers.chain.large.driver import solve_joint

        return solve_joint(chain, options)
    if not supports(chain):
        return None
    from edgeopt_solvers.chain.large.driver import solve_large

    return solve_large(chain, options)
