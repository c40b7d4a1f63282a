"""What a fleet plan costs and whether it keeps its limits, from the decisions alone, by code of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.fleet.instance import REFUSED, Array, Fleet, Solution

__all__ = ["Evaluation", "evaluate"]

#: Relative excess over a deadline, and absolute excess of a sum of shares, that is put down to rounding.
TOLERANCE = 1e-7
#: Relative excess over a server's memory that is put down to rounding.
MEMORY_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Everything a plan amounts to.

    Attributes
    ----------
    objective
        Of the costs of all users (weighted latency when served, else refusal cost) the sum or, for the objective
        ``"max"``, the largest; for ``"admitted"`` the refusal costs alone; ``inf`` for an impossible plan.
    metrics
        ``weighted_latency_s``, ``mean_latency_s``, ``max_latency_s``, ``max_weighted_latency_s``, ``refusal_cost``,
        ``resident_bytes``, and the counts ``num_served``, ``num_refused``, ``num_alone``.
    violations
        One sentence per broken limit; empty for a feasible plan.
    terms
        Parts of the sum of costs: ``local``, ``network``, ``spectrum``, ``compute``, ``refusal``.
    latency_s : (U,)
        Latency of each user, ``nan`` when refused.
    cell_load, server_load : (G,), (E,)
        Sums of the shares in use.
    server_bytes : (E,)
        Bytes resident on each server.
    """

    objective: float
    metrics: dict[str, float]
    violations: tuple[str, ...]
    terms: dict[str, float]
    latency_s: Array
    cell_load: Array
    server_load: Array
    server_bytes: Array


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
    resident = np.zeros_like(work) if fleet.resident_bytes is None else np.asarray(fleet.resident_bytes)
    memory = np.full(fleet.num_servers, math.inf) if fleet.memory_bytes is None else np.asarray(fleet.memory_bytes)
    violations: list[str] = []
    parts: dict[str, list[float]] = {name: [] for name in ("local", "network", "spectrum", "compute", "refusal")}
    latency_s = np.full(users, math.nan)
    cell_load, server_load = np.zeros(fleet.num_cells), np.zeros(fleet.num_servers)
    on_server: list[list[float]] = [[] for _ in range(fleet.num_servers)]
    costs: list[float] = []
    num_alone = 0
    for user in range(users):
        cut, server = solution.cuts[user], solution.servers[user]
        spectrum, compute = solution.spectrum[user], solution.compute[user]
        if not (0 <= spectrum <= 1 + TOLERANCE and 0 <= compute <= 1 + TOLERANCE):
            violations.append(f"user {user}: shares {spectrum:.6g} and {compute:.6g} are not within 0 and 1")
            continue
        if cut == REFUSED:
            parts["refusal"].append(float(refusal[user]))
            costs.append(float(refusal[user]))
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
            on_server[server].append(float(resident[user, cut]))
        else:
            num_alone += 1
            if server != -1:
                violations.append(f"user {user}: cut {cut} leaves nothing for server {server}; say -1")
        total = math.fsum(seconds.values())
        latency_s[user] = total
        costs.append(float(weight[user]) * total)
        for name, value in seconds.items():
            parts[name].append(float(weight[user]) * value)
        if math.isinf(total):
            violations.append(f"user {user}: cut {cut} on server {server} never ends (no radio, no reach, or no share)")
        elif total > deadline[user] * (1 + TOLERANCE):
            violations.append(f"user {user}: {total:.6g} s, deadline {deadline[user]:.6g} s")
    for what, load in (("cell", cell_load), ("server", server_load)):
        for index in np.flatnonzero(load > 1 + TOLERANCE):
            violations.append(f"{what} {index}: shares sum to {load[index]:.9g}, at most 1")
    server_bytes = np.array([math.fsum(amounts) for amounts in on_server])
    for index in np.flatnonzero(server_bytes > memory * (1 + MEMORY_TOLERANCE)):
        violations.append(
            f"server {index}: {server_bytes[index]:.9g} bytes resident, memory_bytes {memory[index]:.9g}: "
            f"{server_bytes[index] - memory[index]:.6g} bytes too many"
        )
    terms = {name: math.fsum(values) for name, values in parts.items()}
    served = latency_s[~np.isnan(latency_s)]
    objective = {"max": max(costs, default=0.0), "admitted": terms["refusal"], "sum": math.fsum(terms.values())}
    metrics = {
        "weighted_latency_s": math.fsum(terms[name] for name in ("local", "network", "spectrum", "compute")),
        "mean_latency_s": math.fsum(served) / len(served) if len(served) else 0.0,
        "max_latency_s": float(served.max()) if len(served) else 0.0,
        "max_weighted_latency_s": float(np.nanmax(weight * latency_s)) if len(served) else 0.0,
        "refusal_cost": terms["refusal"],
        "resident_bytes": math.fsum(server_bytes.tolist()),
        "num_served": float(len(served)),
        "num_refused": float(sum(cut == REFUSED for cut in solution.cuts)),
        "num_alone": float(num_alone),
    }
    return Evaluation(
        objective[fleet.objective], metrics, tuple(violations), terms, latency_s, cell_load, server_load, server_bytes
    )


def _seconds(amount: float, per_second: float) -> float:
    if amount == 0:
        return 0.0
    return amount / per_second if per_second > 0 else math.inf
