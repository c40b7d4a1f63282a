"""What a fleet plan costs and whether it keeps its limits, from the decisions alone, by code of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.fleet.instance import REFUSED, Array, Fleet, Solution

__all__ = ["Evaluation", "diagnose", "evaluate"]

#: Relative excess over a deadline, and absolute excess of a sum of shares, that is put down to rounding.
TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Everything a plan amounts to.

    Attributes
    ----------
    objective
        Weighted latency of the served users plus the refusal cost of the others; ``inf`` for an impossible plan.
    metrics
        ``weighted_latency_s``, ``mean_latency_s``, ``max_latency_s``, ``refusal_cost``, and the counts
        ``num_served``, ``num_refused``, ``num_alone``.
    violations
        One sentence per broken limit; empty for a feasible plan.
    terms
        Parts of the objective: ``local``, ``network``, ``spectrum``, ``compute``, ``refusal``.
    latency_s : (U,)
        Latency of each user, ``nan`` when refused.
    cell_load, server_load : (G,), (E,)
        Sums of the shares in use.
    """

    objective: float
    metrics: dict[str, float]
    violations: tuple[str, ...]
    terms: dict[str, float]
    latency_s: Array
    cell_load: Array
    server_load: Array


def evaluate(fleet: Fleet, solution: Solution) -> Evaluation:
    """Recompute cost and feasibility of ``solution``, user by user.

    Raises
    ------
    InstanceError
        The solution has another number of users than the instance.
    """
    users = fleet.num_users
    for name in ("cuts", "servers", "spectrum", "compute"):
        if len(getattr(solution, name)) != users:
            raise InstanceError(f"solution.{name} has {len(getattr(solution, name))} entries for {users} users")
    local_s, upload, work = np.asarray(fleet.local_s), np.asarray(fleet.upload_bytes), np.asarray(fleet.work)
    rate, speed, delay = np.asarray(fleet.rate_bytes_per_s), np.asarray(fleet.speed), np.asarray(fleet.latency_s)
    cell, weight = np.asarray(fleet.cell), np.asarray(fleet.weight)
    deadline = np.full(users, math.inf) if fleet.deadline_s is None else np.asarray(fleet.deadline_s)
    refusal = np.full(users, math.inf) if fleet.refusal_cost is None else np.asarray(fleet.refusal_cost)
    violations: list[str] = []
    parts: dict[str, list[float]] = {name: [] for name in ("local", "network", "spectrum", "compute", "refusal")}
    latency_s = np.full(users, math.nan)
    cell_load, server_load = np.zeros(fleet.num_cells), np.zeros(fleet.num_servers)
    num_alone = 0
    for user in range(users):
        cut, server = solution.cuts[user], solution.servers[user]
        spectrum, compute = solution.spectrum[user], solution.compute[user]
        if not (0 <= spectrum <= 1 + TOLERANCE and 0 <= compute <= 1 + TOLERANCE):
            violations.append(f"user {user}: shares {spectrum:.6g} and {compute:.6g} are not within 0 and 1")
            continue
        if cut == REFUSED:
            parts["refusal"].append(float(refusal[user]))
            if math.isinf(refusal[user]):
                violations.append(f"user {user} must be served but is refused")
            continue
        if not 0 <= cut < fleet.num_cuts or not -1 <= server < fleet.num_servers:
            violations.append(f"user {user}: no cut {cut} or no server {server}")
            continue
        sent, remote = float(upload[user, cut]), float(work[user, cut])
        seconds = {"local": float(local_s[user, cut]), "network": 0.0, "spectrum": 0.0, "compute": 0.0}
        if sent or remote:
            if server < 0 or speed[server] == 0:
                violations.append(f"user {user}: cut {cut} needs a server that runs, got {server}")
                continue
            seconds["network"] = float(delay[user, server])
            seconds["spectrum"] = _seconds(sent, spectrum * float(rate[user]))
            seconds["compute"] = _seconds(remote, compute * float(speed[server]))
            cell_load[cell[user]] += spectrum
            server_load[server] += compute
        else:
            num_alone += 1
            if server != -1:
                violations.append(f"user {user}: cut {cut} leaves nothing for server {server}; say -1")
        total = math.fsum(seconds.values())
        latency_s[user] = total
        for name, value in seconds.items():
            parts[name].append(float(weight[user]) * value)
        if math.isinf(total):
            violations.append(f"user {user}: cut {cut} on server {server} never ends (no radio, no reach, or no share)")
        elif total > deadline[user] * (1 + TOLERANCE):
            violations.append(f"user {user}: {total:.6g} s, deadline {deadline[user]:.6g} s")
    for what, load in (("cell", cell_load), ("server", server_load)):
        for index in np.flatnonzero(load > 1 + TOLERANCE):
            violations.append(f"{what} {index}: shares sum to {load[index]:.9g}, at most 1")
    terms = {name: math.fsum(values) for name, values in parts.items()}
    served = latency_s[~np.isnan(latency_s)]
    metrics = {
        "weighted_latency_s": math.fsum(terms[name] for name in ("local", "network", "spectrum", "compute")),
        "mean_latency_s": math.fsum(served) / len(served) if len(served) else 0.0,
        "max_latency_s": float(served.max()) if len(served) else 0.0,
        "refusal_cost": terms["refusal"],
        "num_served": float(len(served)),
        "num_refused": float(sum(cut == REFUSED for cut in solution.cuts)),
        "num_alone": float(num_alone),
    }
    return Evaluation(math.fsum(terms.values()), metrics, tuple(violations), terms, latency_s, cell_load, server_load)


def _seconds(amount: float, per_second: float) -> float:
    if amount == 0:
        return 0.0
    return amount / per_second if per_second > 0 else math.inf


def diagnose(fleet: Fleet) -> str:
    """Say why no plan exists: the first user that no option serves even with cell and server to itself."""
    speed = np.asarray(fleet.speed)
    for user in range(fleet.num_users):
        if fleet.refusal_cost is not None and math.isfinite(np.asarray(fleet.refusal_cost)[user]):
            continue
        limit = math.inf if fleet.deadline_s is None else float(np.asarray(fleet.deadline_s)[user])
        best = _fastest(fleet, user, speed)
        if math.isinf(best):
            return f"user {user} has no option at all: neither its own device nor a reachable server can run it"
        if best > limit:
            return (
                f"user {user} needs {best:.6g} s even alone in its cell and on its server, {best - limit:.6g} s over "
                f"its deadline of {limit:.6g} s: extend deadline_s or give it a finite refusal_cost"
            )
    return (
        "every user alone meets its deadline, but not all together: spectrum or compute runs out; extend deadline_s, "
        "add capacity, or give users a finite refusal_cost"
    )


def _fastest(fleet: Fleet, user: int, speed: Array) -> float:
    """Seconds of the fastest option of one user with every share at 1."""
    sent, remote = np.asarray(fleet.upload_bytes)[user], np.asarray(fleet.work)[user]
    alone = (sent == 0) & (remote == 0)
    local_s = np.asarray(fleet.local_s)[user]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        radio = np.where(sent > 0, sent / float(np.asarray(fleet.rate_bytes_per_s)[user]), 0.0)
        away = (local_s + radio)[:, None] + np.where(remote[:, None] > 0, remote[:, None] / speed, 0.0)
    away = away + np.asarray(fleet.latency_s)[user]
    away[alone] = math.inf
    away[:, speed == 0] = math.inf
    return float(min(local_s[alone].min(initial=math.inf), away.min(initial=math.inf)))
