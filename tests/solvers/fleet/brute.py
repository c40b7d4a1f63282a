"""Every choice of every user, each with its best shares, found without any code of the solvers."""

from __future__ import annotations

import itertools
import math

import numpy as np

from edgeopt_solvers.fleet import Fleet


def options(fleet: Fleet, user: int) -> list[tuple[int, int]]:
    """List (cut, server) of one user, (-1, -1) for refused."""
    found = []
    if fleet.refusal_cost is not None and math.isfinite(fleet.refusal_cost[user]):
        found.append((-1, -1))
    for cut in range(fleet.num_cuts):
        if not math.isfinite(fleet.local_s[user, cut]):
            continue
        if fleet.upload_bytes[user, cut] == 0 and fleet.work[user, cut] == 0:
            found.append((cut, -1))
            continue
        if fleet.upload_bytes[user, cut] > 0 and fleet.rate_bytes_per_s[user] == 0:
            continue
        found += [
            (cut, e) for e in range(fleet.num_servers) if fleet.speed[e] > 0 and math.isfinite(fleet.latency_s[user, e])
        ]
    return found


def fits(fleet: Fleet, choice: tuple[tuple[int, int], ...]) -> bool:
    """Whether everything that is resident fits into the memory of its server."""
    if fleet.memory_bytes is None or fleet.resident_bytes is None:
        return True
    held = [0.0] * fleet.num_servers
    for user, (cut, server) in enumerate(choice):
        if server >= 0:
            held[server] += fleet.resident_bytes[user, cut]
    return all(amount <= most for amount, most in zip(held, fleet.memory_bytes, strict=True))


def least_level(fleet: Fleet, choice: tuple[tuple[int, int], ...]) -> float:
    """Least largest cost of fixed choices, by bisection on levels; the deadlines alone where only they matter."""
    floor = max((fleet.refusal_cost[u] for u, (cut, _) in enumerate(choice) if cut < 0), default=0.0)
    lines, fixed = [], []
    deadline = np.full(fleet.num_users, math.inf) if fleet.deadline_s is None else fleet.deadline_s
    for user, (cut, server) in enumerate(choice):
        if cut < 0:
            continue
        seconds = fleet.local_s[user, cut]
        if server < 0:
            if seconds > deadline[user]:
                return math.inf
            floor = max(floor, fleet.weight[user] * seconds)
            continue
        line = np.zeros(fleet.num_cells + fleet.num_servers)
        if fleet.upload_bytes[user, cut]:
            line[fleet.cell[user]] = math.sqrt(fleet.upload_bytes[user, cut] / fleet.rate_bytes_per_s[user])
        line[fleet.num_cells + server] = math.sqrt(fleet.work[user, cut] / fleet.speed[server])
        lines.append(line)
        fixed.append((seconds + fleet.latency_s[user, server], fleet.weight[user], deadline[user]))
    if not lines:
        return floor

    def reachable(level: float) -> bool:
        left = np.array([min(level / weight, late) - seconds for seconds, weight, late in fixed])
        if (left <= 0).any():
            return False
        scaled = np.array(lines) / np.sqrt(left)[:, None]
        return bool(np.linalg.norm(scaled, 2) <= 1 + 1e-12)

    low, high = floor, max(floor, 1.0)
    while not reachable(high):
        low, high = high, 2 * high
        if high > 1e9:
            return math.inf
    if reachable(max(low, 1e-300)):
        return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reachable(middle) else (middle, high)
    return high


def value(fleet: Fleet, choice: tuple[tuple[int, int], ...]) -> float:
    """Least objective of fixed choices: closed form or bisection, or the cone program where a deadline could bind."""
    if not fits(fleet, choice):
        return math.inf
    if fleet.objective != "sum":
        level = least_level(fleet, choice)
        if fleet.objective == "max" or math.isinf(level):
            return level
        return math.fsum(fleet.refusal_cost[user] for user, (cut, _) in enumerate(choice) if cut < 0)
    cost, cells, servers, fixed, late = 0.0, {}, {}, {}, False
    deadline = np.full(fleet.num_users, math.inf) if fleet.deadline_s is None else fleet.deadline_s
    for user, (cut, server) in enumerate(choice):
        if cut < 0:
            cost += fleet.refusal_cost[user]
            continue
        seconds = fleet.local_s[user, cut] + (fleet.latency_s[user, server] if server >= 0 else 0.0)
        if seconds > deadline[user] or (server >= 0 and seconds == deadline[user]):
            return math.inf
        cost += fleet.weight[user] * seconds
        if server >= 0:
            fixed[user] = seconds
            late |= math.isfinite(deadline[user])
            cells.setdefault(fleet.cell[user], {})[user] = fleet.upload_bytes[user, cut] / fleet.rate_bytes_per_s[user]
            servers.setdefault(server, {})[user] = fleet.work[user, cut] / fleet.speed[server]
    groups = [*cells.values(), *servers.values()]
    closed = cost + sum(sum(math.sqrt(fleet.weight[u] * q) for u, q in group.items()) ** 2 for group in groups)
    if not late:
        return closed
    # With the closed-form shares every deadline may hold already.
    time = dict(fixed)
    for group in groups:
        total = sum(math.sqrt(fleet.weight[u] * q) for u, q in group.items())
        for user, demand in group.items():
            time[user] += total * math.sqrt(demand / fleet.weight[user])
    if all(time[user] <= deadline[user] for user in time):
        return closed
    return cone(fleet, cost, groups, fixed, deadline)


def cone(fleet: Fleet, cost: float, groups: list[dict[int, float]], fixed: dict[int, float], deadline) -> float:
    """Shares as variables, solved by cvxpy."""
    import cvxpy as cp

    time = dict.fromkeys(fixed, 0.0)
    limits = []
    for group in groups:
        users = [user for user, demand in group.items() if demand > 0]
        if not users:
            continue
        share = cp.Variable(len(users), pos=True)
        limits.append(cp.sum(share) <= 1)
        for i, user in enumerate(users):
            time[user] = time[user] + group[user] * cp.inv_pos(share[i])
    for user, seconds in time.items():
        if math.isfinite(deadline[user]) and not isinstance(seconds, float):
            limits.append(seconds <= deadline[user] - fixed[user])
    total = sum((fleet.weight[user] * seconds for user, seconds in time.items()), 0.0)
    program = cp.Problem(cp.Minimize(total), limits)
    program.solve(solver="CLARABEL")
    if program.status in ("infeasible", "infeasible_inaccurate"):
        return math.inf
    return cost + float(program.value)


def optimum(fleet: Fleet) -> float:
    """Return the least cost over all choices, ``inf`` without a plan."""
    lists = [options(fleet, user) for user in range(fleet.num_users)]
    return min((value(fleet, choice) for choice in itertools.product(*lists)), default=math.inf)
