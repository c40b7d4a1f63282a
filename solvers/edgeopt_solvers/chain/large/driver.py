"""From an instance to a result: prepare the view, choose the engine, word the outcome."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from edgeopt_solvers.chain.certificate import Certificate
from edgeopt_solvers.chain.instance import Chain, Solution
from edgeopt_solvers.chain.large import joint, knapsack, labels, latency
from edgeopt_solvers.chain.large.clock import Clock
from edgeopt_solvers.chain.large.latency import Proof
from edgeopt_solvers.chain.large.prices import Masks
from edgeopt_solvers.chain.large.threshold import minimise_period
from edgeopt_solvers.chain.large.types import merge_types
from edgeopt_solvers.chain.large.view import Array, Ints, Path, View, additive_view, device_fields, period_view
from edgeopt_solvers.chain.shares import with_shares
from edgeopt_solvers.result import Result, Status
from edgeopt_solvers.solve import Options

__all__ = ["solve_joint", "solve_large"]


def solve_large(chain: Chain, options: Options) -> Result:
    """Solve an instance that :func:`~edgeopt_solvers.chain.large.supports`."""
    with Clock(options.time_limit_s) as clock:
        throughput = set(chain.weights) == {"throughput"}
        view = _usable(period_view(chain) if throughput else additive_view(chain))
        if view.num_devices == 0:
            return _result(Proof(bound=math.inf), view, 1.0, options, clock)
        view = merge_types(view)
        start = view.path(options.warm_start) if isinstance(options.warm_start, Solution) else None
        if throughput:
            proof = minimise_period(view, clock, gap=options.gap, seed=options.seed, start=start)
            scale = chain.weights["throughput"]
        else:
            scale = 1.0
            equal = knapsack.equal_layers(view)
            if equal is not None:
                proof = knapsack.minimise(view, equal)
            else:
                price, remembers = _known(options.certificate, chain, view, start or [])
                proof = latency.minimise(
                    view, clock, gap=options.gap, seed=options.seed, start=start, price=price, remembers=remembers
                )
        result = _result(proof, view, scale, options, clock)
        return replace(result, certificate=_certificate(proof, chain, view))


def solve_joint(chain: Chain, options: Options) -> Result | None:
    """Solve an instance that :func:`~edgeopt_solvers.chain.large.supports_joint`; ``None``: too large for labels."""
    with Clock(options.time_limit_s) as clock:
        whole = joint.joint_view(chain)
        usable = _usable_devices(whole.view)
        if len(usable) > joint.MOST_DEVICES:
            return None
        if len(usable) == 0:
            return _result(Proof(bound=math.inf), whole.view, 1.0, options, clock)
        problem = whole.keep(usable)
        start = problem.view.path(options.warm_start) if isinstance(options.warm_start, Solution) else None
        proof = joint.minimise(problem, clock, gap=options.gap, seed=options.seed, start=start)
        if proof is None:
            return None
        result = _result(proof, problem.view, 1.0, options, clock)
        solution = None if result.solution is None else with_shares(chain, result.solution)
        return replace(result, solution=solution)


def _known(certificate: object, chain: Chain, view: View, start: Path) -> tuple[Array | None, Masks | None]:
    """Prices (G,) and memory (L + 1, G) of an earlier proof in terms of the view; copies share the mean price.

    Prices are scaled by what the plan at hand costs against the one that was proven then.
    """
    if not isinstance(certificate, Certificate) or len(certificate.price) != chain.num_devices:
        return None, None
    price = np.array([max(0.0, float(certificate.price[list(group)].mean())) for group in view.members])
    now = view.cost(start) if start else math.inf
    if certificate.objective > 0 and math.isfinite(now):
        price *= now / certificate.objective
    remembers = certificate.remembers
    if remembers is None or len(remembers) != chain.num_elements + 1:
        return price, None
    first = [group[0] for group in view.members]
    shifts, _, bits = device_fields(view)
    if bits > labels.MOST_BITS:
        return price, None
    known = remembers[:, np.array(first)[:, None], first].astype(np.uint64)
    return price, np.bitwise_or.reduce(np.left_shift(known, shifts), axis=2)


def _certificate(proof: Proof, chain: Chain, view: View) -> Certificate | None:
    """Prices and memory in terms of the instance's devices; those the view left out are priced 0."""
    if proof.price is None:
        return None
    first = [group[0] for group in view.members]
    price = np.zeros(chain.num_devices)
    for group, value in zip(view.members, proof.price, strict=True):
        price[list(group)] = value
    if proof.remembers is None:
        return Certificate(price, proof.cost)
    remembers = np.zeros((chain.num_elements + 1, chain.num_devices, chain.num_devices), bool)
    shifts, _, _ = device_fields(view)
    known = np.right_shift(proof.remembers[:, :, None], shifts) & np.uint64(1)
    remembers[:, np.array(first)[:, None], first] = known.astype(bool)
    return Certificate(price, proof.cost, remembers)


def _usable_devices(view: View) -> Ints:
    """Devices that can hold any segment at all."""
    starts = np.arange(view.num_elements + 1)
    return np.flatnonzero((view.last_end >= starts + view.min_segment).any(axis=1))


def _usable(view: View) -> View:
    """Leave out devices that can hold no segment at all."""
    keep = _usable_devices(view)
    return view if len(keep) == view.num_devices else view.keep(keep)


def _result(proof: Proof, view: View, scale: float, options: Options, clock: Clock) -> Result:
    solution = view.solution(proof.path) if proof.path else None
    statistics = {"labels": float(proof.labels), "rounds": float(proof.rounds)}
    if solution is None:
        reason = "infeasible" if proof.bound == math.inf else "time_limit"
        return Result(
            Status("infeasible" if reason == "infeasible" else "time_limit", False),
            math.inf, proof.bound * scale, None, "exact", clock.elapsed_s, statistics=statistics,
        )  # fmt: skip
    closed = proof.within(0.0)
    status = Status("optimal" if closed else "gap_reached" if proof.within(options.gap) else "time_limit", True)
    bound = proof.cost if closed else proof.bound  # the difference is rounding
    return Result(status, proof.cost * scale, bound * scale, solution, "exact", clock.elapsed_s, statistics=statistics)
