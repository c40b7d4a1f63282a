"""Devices that cannot be told apart: one device with several copies, so that labels carry counts instead of sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeopt_solvers.chain.large.view import View

__all__ = ["merge_types"]


def merge_types(view: View) -> View:
    """Merge devices whose exchange changes no cost: equal rows, equal links to all others and between each other."""
    num = view.num_devices
    own = np.hstack([view.prefix, view.last_end.astype(float), view.enter[:, None], view.leave[:, None]])
    groups: dict[bytes, list[list[int]]] = {}
    for device in range(num):
        candidates = groups.setdefault(own[device].tobytes(), [])
        for group in candidates:
            if _exchangeable(view, group[0], device):
                group.append(device)
                break
        else:
            candidates.append([device])
    merged = sorted(group for candidates in groups.values() for group in candidates)
    if len(merged) == num:
        return view
    first = np.array([group[0] for group in merged], np.int64)
    reduced = view.keep(first)
    link = reduced.link.copy()
    for index, group in enumerate(merged):
        if len(group) > 1:
            link[:, index, index] = view.link[:, group[0], group[1]]
    members = tuple(tuple(m for device in group for m in view.members[device]) for group in merged)
    return replace(reduced, link=link, members=members)


def _exchangeable(view: View, a: int, b: int) -> bool:
    """Whether swapping a and b maps every matrix of hand-over costs to itself."""
    order = np.arange(view.num_devices)
    order[[a, b]] = b, a
    # rows and columns of a and b are all that a swap can change
    rows = np.array_equal(view.link[:, a], view.link[:, b][:, order])
    return rows and np.array_equal(view.link[:, :, a], view.link[:, :, b][:, order])
