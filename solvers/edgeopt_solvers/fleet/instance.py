"""The fleet problem as data: many users, each choosing a cut and a server, sharing spectrum and compute.

Arrays in SI units, validated once, immutable afterwards. ``work`` and ``speed`` only need to agree with each other
(FLOP and FLOP/s, or seconds at unit speed and a speed-up). What decisions cost is computed in ``check.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt_solvers.data import JsonInstance
from edgeopt_solvers.errors import InstanceError

__all__ = ["FEATURES", "OBJECTIVES", "REFUSED", "Fleet", "Solution"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Optional features; backends state which of them they can express.
FEATURES = frozenset({"cells", "weights", "deadlines", "refusal", "memory", "max", "admitted", "choice"})

OBJECTIVES = ("sum", "max", "admitted")

#: A server may be filled beyond its memory by this fraction, so that "exactly full" survives rounding.
MEMORY_SLIP = 1e-12

#: ``Solution.cuts`` entry of a user that is not served.
REFUSED = -1


@dataclass(frozen=True, slots=True)
class Solution:
    """Decisions of a fleet plan, one entry per user.

    Attributes
    ----------
    cuts
        Chosen cut, or ``-1`` when the user is refused.
    servers
        Server of the remote part, ``-1`` when the user is refused or runs alone.
    spectrum
        Share of the user's cell, 0 when nothing is sent.
    compute
        Share of the server, 0 when nothing runs there.
    user_ids
        Names of the users for a later re-solve in which users come and go; empty: by position.
    prices
        Square roots of the prices of a whole cell (first) and a whole server when the plan was found, then (with
        memory caps) the prices of all memory of a server; only a warm start reads them. Empty: unknown.
    """

    cuts: tuple[int, ...]
    servers: tuple[int, ...]
    spectrum: tuple[float, ...]
    compute: tuple[float, ...]
    user_ids: tuple[int, ...] = ()
    prices: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("cuts", "servers", "user_ids"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name)))
        for name in ("spectrum", "compute", "prices"):
            object.__setattr__(self, name, tuple(float(i) for i in getattr(self, name)))


@dataclass(frozen=True, eq=False)
class Fleet(JsonInstance):
    """Give every user a cut, a server and shares of what it uses, at the least weighted latency.

    U users, C cuts, E servers. A user's latency is ``local_s[u, c]``, and, unless the cut needs neither bytes nor
    work, plus ``latency_s[u, e] + upload_bytes[u, c] / (x_u * rate[u]) + work[u, c] / (y_u * speed[e])`` with
    spectrum share ``x_u`` of the user's cell and compute share ``y_u`` of server e; the shares of a cell, and of a
    server, sum to at most 1, and what is resident on a server fits into its memory. A cut without bytes and without
    work runs on the user's own device (server ``-1``).

    Parameters
    ----------
    local_s : (U, C)
        Seconds of the part that stays on the user's device; ``inf`` forbids the cut.
    upload_bytes : (U, C)
        Bytes over the user's cell.
    work : (U, C)
        Work left for the server.
    rate_bytes_per_s : (U,)
        Rate with the whole band of the cell; 0: no radio.
    speed : (E,)
        Work per second with the whole server; 0: switched off.
    latency_s : (U, E)
        Fixed seconds between user and server, both ways; ``inf``: not reachable.
    cell : (U,) of int, optional
        Cell of each user, from 0. Default: one cell for all.
    weight : (U,), optional
        Positive weights of the latencies. Default 1.
    deadline_s : (U,), optional
        Most seconds a served user may take; ``inf``: no deadline.
    refusal_cost : (U,), optional
        Price of not serving a user, in weighted seconds; ``inf``: must be served. Default: all must be served. A
        value above ``sum(weight * deadline_s)`` for everyone admits as many users as possible, then minimises latency.
        With the objective ``"admitted"`` the default is 1 for everyone.
    user_ids : (U,) of int, optional
        Distinct names of the users; lets a warm start follow users that come and go.
    resident_bytes : (U, C), optional
        Bytes that the cut occupies on its server while the user is served (weights of its layers, KV cache); a cut
        that runs alone occupies none. Default 0.
    memory_bytes : (E,), optional
        Memory of each server; ``inf``: no limit. Default: no limits.
    objective : {"sum", "max", "admitted"}
        A served user costs ``weight * latency``, a refused one its ``refusal_cost``: minimise the ``sum`` of these or
        the largest of them (``max``). ``admitted``: minimise the refusal costs alone, so that as many users as
        possible are served within their deadlines; every user needs a finite one.

    Raises
    ------
    InstanceError
        A shape, sign or reference is wrong; the message names the field, the value and the mend.
    """

    family: ClassVar[str] = "fleet"

    local_s: ArrayLike
    upload_bytes: ArrayLike
    work: ArrayLike
    rate_bytes_per_s: ArrayLike
    speed: ArrayLike
    latency_s: ArrayLike
    cell: ArrayLike | None = None
    weight: ArrayLike | None = None
    deadline_s: ArrayLike | None = None
    refusal_cost: ArrayLike | None = None
    user_ids: ArrayLike | None = None
    resident_bytes: ArrayLike | None = None
    memory_bytes: ArrayLike | None = None
    objective: str = "sum"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InstanceError(f"objective is {self.objective!r}; choose one of {', '.join(OBJECTIVES)}")
        local_s = _floats("local_s", self.local_s, ndim=2, infinite=True)
        num_users, num_cuts = local_s.shape
        if not num_users or not num_cuts:
            raise InstanceError(f"local_s has shape {local_s.shape}: give at least one user and one cut")
        speed = _floats("speed", self.speed, ndim=1)
        num_servers = len(speed)
        weight = np.ones(num_users) if self.weight is None else self.weight
        values: dict[str, Any] = {
            "local_s": local_s,
            "speed": speed,
            "upload_bytes": _floats("upload_bytes", self.upload_bytes, (num_users, num_cuts)),
            "work": _floats("work", self.work, (num_users, num_cuts)),
            "rate_bytes_per_s": _floats("rate_bytes_per_s", self.rate_bytes_per_s, (num_users,)),
            "latency_s": _floats("latency_s", self.latency_s, (num_users, num_servers), infinite=True),
            "cell": _indices("cell", self.cell, num_users),
            "weight": _floats("weight", weight, (num_users,), positive=True),
        }
        for name, positive in (("deadline_s", True), ("refusal_cost", False)):
            given = getattr(self, name)
            if given is not None:
                values[name] = _floats(name, given, (num_users,), infinite=True, positive=positive)
        if self.user_ids is not None:
            ids = _indices("user_ids", self.user_ids, num_users, low=None)
            if len(np.unique(ids)) != num_users:
                raise InstanceError("user_ids holds a name twice: give every user its own")
            values["user_ids"] = ids
        if self.resident_bytes is not None:
            values["resident_bytes"] = _floats("resident_bytes", self.resident_bytes, (num_users, num_cuts))
        if self.memory_bytes is not None:
            values["memory_bytes"] = _floats("memory_bytes", self.memory_bytes, (num_servers,), infinite=True)
        if self.objective == "admitted":
            values.setdefault("refusal_cost", np.ones(num_users))
            _need_deadlines(values.get("deadline_s"))
        for name, value in values.items():
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return int(np.shape(self.local_s)[0])

    @property
    def num_cuts(self) -> int:
        """Number of cuts C."""
        return int(np.shape(self.local_s)[1])

    @property
    def num_servers(self) -> int:
        """Number of servers E."""
        return int(np.shape(self.speed)[0])

    @property
    def num_cells(self) -> int:
        """Number of cells: the largest index in use, plus one."""
        return int(np.max(np.asarray(self.cell))) + 1

    def features(self) -> frozenset[str]:
        """Return the optional features that matter in this instance."""
        refusal = self.refusal_cost is not None and bool(np.isfinite(np.asarray(self.refusal_cost)).any())
        resident = self.resident_bytes is not None and bool(np.asarray(self.resident_bytes).any())
        memory = self.memory_bytes is not None and bool(np.isfinite(np.asarray(self.memory_bytes)).any())
        used = {
            "cells": self.num_cells > 1,
            "weights": bool((np.asarray(self.weight) != 1).any()),
            "deadlines": self.deadline_s is not None and bool(np.isfinite(np.asarray(self.deadline_s)).any()),
            "refusal": refusal,
            "memory": resident and memory,
            "max": self.objective == "max",
            "admitted": self.objective == "admitted",
            "choice": refusal or self.num_cuts > 1 or self.num_servers > 1,
        }
        return frozenset(name for name, present in used.items() if present)

    @classmethod
    def _decoded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Rows without entries: a fleet without servers has a (U, 0) matrix of latencies, not a (U,) vector."""
        if content.get("speed") == [] and isinstance(content["local_s"], list):
            content["latency_s"] = np.zeros((len(content["local_s"]), 0))
        return content


def _floats(
    name: str,
    value: ArrayLike,
    shape: tuple[int, ...] | None = None,
    *,
    ndim: int | None = None,
    infinite: bool = False,
    positive: bool = False,
) -> Array:
    """Return ``value`` as a fresh float array after checking shape, sign and finiteness."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InstanceError(f"{name} is not a rectangular array of numbers: {error}") from error
    if ndim is not None and array.ndim != ndim:
        raise InstanceError(f"{name} has {array.ndim} axes, expected {ndim}")
    if shape is not None and array.shape != shape:
        raise InstanceError(f"{name} has shape {array.shape}, expected {shape}: it must agree with local_s and speed")
    bad = np.isnan(array) | (array <= 0 if positive else array < 0)
    if not infinite:
        bad |= np.isinf(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        kind = ("positive" if positive else "zero or more") + ("" if infinite else " and finite")
        raise InstanceError(f"{name}{list(where)} is {array[where]}: give a number that is {kind}")
    return array


def _indices(name: str, value: ArrayLike | None, num_users: int, low: int | None = 0) -> Ints:
    """Return ``value`` as a fresh integer array of one entry per user."""
    if value is None:
        return np.zeros(num_users, dtype=np.int64)
    given = np.asarray(value)
    if given.shape != (num_users,):
        raise InstanceError(f"{name} has shape {given.shape}, expected {(num_users,)}: one entry per user")
    if given.dtype.kind not in "iu":
        raise InstanceError(f"{name} holds {given.dtype} values: give integers")
    if low is not None and given.min() < low:
        raise InstanceError(f"{name} holds {int(given.min())}: count from {low}")
    if low is not None and given.max() > 10 * num_users + 1000:
        raise InstanceError(f"{name} holds {int(given.max())}: number the cells from 0 without large holes")
    return given.astype(np.int64)


def _need_deadlines(deadline_s: Array | None) -> None:
    """Refuse users without a deadline: serving one late enough would always be possible, and mean nothing."""
    late = np.array([True]) if deadline_s is None else ~np.isfinite(deadline_s)
    if late.any():
        what = "missing" if deadline_s is None else "inf"
        raise InstanceError(
            f"deadline_s[{int(np.argmax(late))}] is {what}, and the objective 'admitted' counts who is served in time: "
            "give every user finite seconds"
        )
