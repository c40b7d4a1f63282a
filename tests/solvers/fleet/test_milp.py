"""The PuLP formulation: one tiny golden program per constraint family, with the cuts that a first plan adds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgeopt_solvers import solve
from edgeopt_solvers.fleet import Fleet
from edgeopt_solvers.fleet.admission import as_sum
from edgeopt_solvers.fleet.milp import Program
from edgeopt_solvers.fleet.model import build, columns, price
from edgeopt_solvers.fleet.shares import allocate
from tests.solvers.fleet.brute import optimum
from tests.solvers.golden import assert_is_golden

GOLDEN = Path(__file__).parent / "golden"

TWO = {
    "local_s": [[0.0, 4.0], [0.5, 8.0]], "upload_bytes": [[4.0, 0.0], [1.0, 0.0]], "work": [[9.0, 0.0], [4.0, 0.0]],
    "rate_bytes_per_s": [4.0, 1.0], "speed": [1.0, 4.0], "latency_s": [[0.125, 0.25], [0.125, 0.25]],
}  # fmt: skip

#: Name → fields, and the (pair * servers + server, -1: solo) of each user in the plan that is cut off.
FAMILIES = {
    "choice": (TWO, (1, 3)),
    "cells": ({**TWO, "cell": [0, 1], "weight": [4.0, 1.0]}, (1, 3)),
    "memory": ({**TWO, "resident_bytes": [[3.0, 0], [2.0, 0]], "memory_bytes": [math.inf, 4.0]}, (1, 2)),
    "full": ({**TWO, "resident_bytes": [[3.0, 0], [2.0, 0]], "memory_bytes": [math.inf, 4.0]}, (1, 3)),
    "refusal": ({**TWO, "refusal_cost": [2.0, math.inf]}, (-1, 3)),
    "deadline": ({**TWO, "deadline_s": [9.0, 9.0]}, (1, 3)),
    "room": ({**TWO, "deadline_s": [6.0, 5.0], "refusal_cost": [16.0, 16.0]}, (1, 3)),
    "admitted": ({**TWO, "deadline_s": [6.0, 5.0], "objective": "admitted"}, (1, 3)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_program_is_the_golden_one(family, tmp_path):
    """Set UPDATE_GOLDEN=1 to rewrite the files; then read the difference line by line."""
    given, keys = FAMILIES[family]
    fleet = Fleet(**given)
    counting = fleet.objective == "admitted"
    model = build(as_sum(fleet)[0] if counting else fleet)
    found = price(model, np.zeros(model.num_prices), math.inf)[1]
    program = Program(model, columns(model, np.unique(found)), counting)
    cols = program.cols
    picked = np.array([np.flatnonzero((cols.user == user) & (cols.key == key))[0] for user, key in enumerate(keys)])
    if not program.cut_overfull(picked):
        allocation = allocate(model, cols.take(picked))
        program.cut(picked, allocation.prices, math.isfinite(allocation.value))
    assert_is_golden(program.program, GOLDEN / f"{family}.lp", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_instances_are_solved_right(family):
    fleet = Fleet(**FAMILIES[family][0])
    best = optimum(fleet)
    for backend in ("exact", "pulp"):
        assert solve(fleet, backend).objective == pytest.approx(best, rel=2e-6), backend
