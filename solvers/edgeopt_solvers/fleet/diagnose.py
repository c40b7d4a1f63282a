"""Why there is no plan: the limit that fails, and by how much."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from edgeopt_solvers.fleet import exact
from edgeopt_solvers.fleet.instance import Array, Fleet, Ints
from edgeopt_solvers.solve import Options

__all__ = ["diagnose"]

#: Seconds that a diagnosis may take when the caller set no limit.
PATIENCE_S = 5.0


def diagnose(fleet: Fleet, time_limit_s: float | None = None) -> str:
    """Name the first user that no option serves even with everything to itself, else what is short for all together.

    By how much deadlines are too tight takes a solve of its own (``time_limit_s``: what may be spent on it).
    """
    refusal = np.full(fleet.num_users, math.inf) if fleet.refusal_cost is None else np.asarray(fleet.refusal_cost)
    deadline = np.full(fleet.num_users, math.inf) if fleet.deadline_s is None else np.asarray(fleet.deadline_s)
    demanding = np.flatnonzero(np.isinf(refusal))
    for user in demanding.tolist():
        if message := _hopeless(fleet, user, float(deadline[user])):
            return message
    if message := _memory(fleet, demanding, deadline):
        return message
    left_s = PATIENCE_S if time_limit_s is None else time_limit_s
    free = replace(fleet, deadline_s=None, objective="sum")
    limited = "memory" in fleet.features() and left_s > 0.01
    if limited and exact.solve(free, Options(0.5 * left_s, 0.5)).status.reason == "infeasible":
        return (
            "memory: each user fits somewhere, but no assignment fits all into memory_bytes, deadlines aside; add "
            "memory, or give users a finite refusal_cost"
        )
    how_much = _stretch(fleet, deadline, refusal, 0.5 * left_s) if left_s > 0.01 else ""
    return (
        f"every user alone meets its deadline, but not all together: spectrum or compute runs out{how_much}; extend "
        "deadline_s, add capacity, or give users a finite refusal_cost"
    )


def _stretch(fleet: Fleet, deadline: Array, refusal: Array, limit_s: float) -> str:
    """Say by which factor all deadlines have to be extended: the least largest latency in parts of the deadline."""
    if not np.isfinite(deadline).any():
        return ""
    longest = float(deadline[np.isfinite(deadline)].max())
    weight = np.where(np.isfinite(deadline), 1 / deadline, 1e-12 / longest)
    free = replace(
        fleet, weight=weight, deadline_s=None, objective="max", refusal_cost=np.where(np.isinf(refusal), np.inf, 0.0)
    )
    result = exact.solve(free, Options(limit_s, 1e-3))
    if result.solution is None:
        return ""
    known = f" (proven: {result.bound:.4g} times is not enough)" if result.bound > 1 else ""
    return f"; all would be served with every deadline {result.objective:.4g} times as long{known}"


def _options(fleet: Fleet, user: int) -> tuple[Array, Array]:
    """Return seconds alone in the cell and on the server, and bytes resident there, (C, E + 1); last: no server."""
    sent, remote = np.asarray(fleet.upload_bytes)[user], np.asarray(fleet.work)[user]
    local_s, speed = np.asarray(fleet.local_s)[user], np.asarray(fleet.speed)
    alone = (sent == 0) & (remote == 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        radio = np.where(sent > 0, sent / float(np.asarray(fleet.rate_bytes_per_s)[user]), 0.0)
        away = (local_s + radio)[:, None] + np.where(remote[:, None] > 0, remote[:, None] / speed, 0.0)
    away = away + np.asarray(fleet.latency_s)[user]
    away[alone] = math.inf
    away[:, speed == 0] = math.inf
    resident = np.zeros(len(sent)) if fleet.resident_bytes is None else np.asarray(fleet.resident_bytes)[user]
    held = np.broadcast_to(resident[:, None], away.shape)
    seconds = np.concatenate([away, np.where(alone, local_s, math.inf)[:, None]], axis=1)
    return seconds, np.concatenate([held, np.zeros((len(sent), 1))], axis=1)


def _caps(fleet: Fleet) -> Array:
    """Memory by server, and no limit for the user's own device."""
    memory = np.full(fleet.num_servers, math.inf) if fleet.memory_bytes is None else np.asarray(fleet.memory_bytes)
    return np.append(memory, math.inf)


def _hopeless(fleet: Fleet, user: int, deadline: float) -> str:
    """Say why one user cannot be served even with everything to itself; empty if it can."""
    seconds, held = _options(fleet, user)
    fits = held <= _caps(fleet) * (1 + 1e-12)
    if np.isinf(seconds).all():
        return f"user {user} has no option at all: neither its own device nor a reachable server can run it"
    in_time = seconds <= deadline
    if not in_time.any():
        best = float(seconds.min())
        return (
            f"user {user} needs {best:.6g} s even alone in its cell and on its server, {best - deadline:.6g} s over "
            f"its deadline of {deadline:.6g} s: extend deadline_s or give it a finite refusal_cost"
        )
    if not (in_time & np.isfinite(seconds) & fits).any():
        short = np.where(in_time & np.isfinite(seconds), held - _caps(fleet), math.inf)
        cut, server = np.unravel_index(int(short.argmin()), short.shape)
        return (
            f"user {user} fits into no server that it reaches in time: cut {cut} needs {held[cut, server]:.6g} "
            f"bytes on server {server}, whose memory_bytes is {_caps(fleet)[server]:.6g}: {short[cut, server]:.6g} "
            "bytes too few; add memory, extend deadline_s, or give it a finite refusal_cost"
        )
    return ""


def _memory(fleet: Fleet, demanding: Ints, deadline: Array) -> str:
    """Say if the least that all users hold exceeds all memory there is."""
    caps = _caps(fleet)
    least, reached = [], np.zeros(len(caps), dtype=bool)
    for user in demanding.tolist():
        seconds, held = _options(fleet, user)
        usable = (seconds <= deadline[user]) & np.isfinite(seconds) & (held <= caps * (1 + 1e-12))
        least.append(float(held[usable].min()))
        reached |= usable.any(axis=0) if least[-1] > 0 else False
    total, there_is = math.fsum(least), float(caps[reached].sum())
    if total <= there_is * (1 + 1e-12):
        return ""
    return (
        f"memory: the users hold at least {total:.6g} bytes together, the servers in reach have {there_is:.6g}: "
        f"{total - there_is:.6g} bytes too few; add memory_bytes or give users a finite refusal_cost"
    )
