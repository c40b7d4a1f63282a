"""What a re-solve changes for the users who stay, and what has to be loaded onto servers for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeopt_solvers.errors import InstanceError
from edgeopt_solvers.fleet.instance import Fleet, Solution

__all__ = ["Changes", "changes"]


@dataclass(frozen=True, slots=True)
class Changes:
    """Difference of two plans.

    Attributes
    ----------
    arrived, left
        Names of users in only one of the plans (positions, where plans have no names).
    moved
        Names of users whose cut or server differs, refused and served again included.
    loaded_bytes
        Bytes that servers have to load: all that is resident for users new to a server, and what a user who stays on
        its server holds there in addition.
    """

    arrived: tuple[int, ...]
    left: tuple[int, ...]
    moved: tuple[int, ...]
    loaded_bytes: float


def changes(fleet: Fleet, before: Solution, after: Solution) -> Changes:
    """Compare the plan ``after`` of ``fleet`` with an earlier plan, user by user by name, else by position.

    A user who stays on its server is taken to hold what the present fleet says its old cut holds.

    Raises
    ------
    InstanceError
        ``after`` has another number of users than the fleet.
    """
    if len(after.cuts) != fleet.num_users:
        raise InstanceError(
            f"after has {len(after.cuts)} users, the fleet {fleet.num_users}: give the plan of the fleet"
        )
    held = np.zeros((fleet.num_users, fleet.num_cuts))
    if fleet.resident_bytes is not None:
        held = np.asarray(fleet.resident_bytes)
    named = bool(before.user_ids and after.user_ids)
    old_names = before.user_ids if named else tuple(range(len(before.cuts)))
    new_names = after.user_ids if named else tuple(range(len(after.cuts)))
    old = {name: (before.cuts[i], before.servers[i]) for i, name in enumerate(old_names)}
    moved, loaded = [], 0.0
    for user, name in enumerate(new_names):
        cut, server = after.cuts[user], after.servers[user]
        had_cut, had_server = old.get(name, (-1, -1))
        if name in old and (cut, server) != (had_cut, had_server):
            moved.append(name)
        if server >= 0:
            there = float(held[user, had_cut]) if had_server == server and had_cut < fleet.num_cuts else 0.0
            loaded += max(0.0, float(held[user, cut]) - there)
    arrived = tuple(name for name in new_names if name not in old)
    left = tuple(name for name in old_names if name not in set(new_names))
    return Changes(arrived, left, tuple(moved), loaded)
