from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

import edgeopt_solvers.fleet as family
from edgeopt_solvers import InstanceError
from edgeopt_solvers.fleet import Fleet, Solution, changes, diagnose, evaluate
from tests.solvers.fleet.draws import small


def _two_users(**changes):
    base = {
        "local_s": [[0.0, 2.0], [0.5, 1.0]], "upload_bytes": [[4.0, 0], [1.0, 0]], "work": [[9.0, 0], [4.0, 0]],
        "rate_bytes_per_s": [4.0, 1.0], "speed": [1.0], "latency_s": [[0.1], [0.2]],
    }  # fmt: skip
    return Fleet(**(base | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local_s": [[0.0, np.nan], [0, 1]]}, r"local_s\[0, 1\] is nan"),
        ({"local_s": [0.0, 1.0]}, "local_s has 1 axes"),
        ({"local_s": np.zeros((0, 2))}, "at least one user"),
        ({"upload_bytes": [[1.0, -1], [0, 0]]}, r"upload_bytes\[0, 1\] is -1"),
        ({"work": [[np.inf, 0], [0, 0]]}, r"work\[0, 0\] is inf"),
        ({"rate_bytes_per_s": [1.0]}, "rate_bytes_per_s has shape"),
        ({"latency_s": [[0.1, 0.1], [0.1, 0.1]]}, "latency_s has shape"),
        ({"cell": [0.5, 1.0]}, "cell holds float64"),
        ({"cell": [0, -1]}, "count from 0"),
        ({"cell": [0, 10**9]}, "without large holes"),
        ({"weight": [1.0, 0.0]}, r"weight\[1\] is 0"),
        ({"deadline_s": [1.0, 0.0]}, "deadline_s"),
        ({"refusal_cost": [1.0, -2.0]}, "refusal_cost"),
        ({"user_ids": [7, 7]}, "twice"),
        ({"resident_bytes": [[1.0, -1.0], [0, 0]]}, r"resident_bytes\[0, 1\] is -1"),
        ({"memory_bytes": [1.0, 2.0]}, "memory_bytes has shape"),
        ({"objective": "least"}, "choose one of sum, max, admitted"),
        ({"objective": "admitted"}, r"deadline_s\[0\] is missing"),
        ({"objective": "admitted", "deadline_s": [1.0, np.inf]}, r"deadline_s\[1\] is inf"),
        ({"speed": [["a"]]}, "speed is not"),
    ],
)
def test_refused(changes, words):
    with pytest.raises(InstanceError, match=words):
        _two_users(**changes)


def test_immutable():
    fleet = _two_users()
    with pytest.raises(ValueError, match="read-only"):
        fleet.local_s[0, 0] = 1


@pytest.mark.parametrize("seed", range(20))
def test_json_round_trip(seed):
    objective = ("sum", "max", "admitted")[seed % 3]
    fleet = small(seed, deadlines=seed % 2 == 0, refusal=seed % 3 == 0, memory=seed % 5 > 1, objective=objective)
    again = Fleet.from_json(fleet.to_json())
    assert again == fleet
    assert hash(again) == hash(fleet)
    for field in fields(fleet):
        before, after = getattr(fleet, field.name), getattr(again, field.name)
        assert (before is None and after is None) or np.array_equal(before, after)
    json.loads(fleet.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"family": "chain"}', '{"family": "fleet"}', '{"family": "fleet", "x": 1}']
)
def test_bad_json(text):
    with pytest.raises(InstanceError):
        Fleet.from_json(text)


def test_features():
    assert _two_users().features() == {"choice"}
    full = _two_users(
        cell=[0, 1], weight=[1, 2], deadline_s=[1, 2], refusal_cost=[1, np.inf], memory_bytes=[1], objective="max",
        resident_bytes=[[1, 0], [1, 0]],
    )  # fmt: skip
    assert full.features() | replace(full, objective="admitted").features() == family.FEATURES
    absent = {"deadline_s": [np.inf] * 2, "refusal_cost": [np.inf] * 2, "memory_bytes": [5.0]}
    assert _two_users(**absent).features() == {"choice"}
    only = {"local_s": [[0.0], [1.0]], "upload_bytes": [[1.0], [1.0]], "work": [[1.0], [1.0]]}
    assert _two_users(**only).features() == frozenset()


def test_evaluation_by_hand():
    fleet = _two_users(weight=[2.0, 1.0])
    plan = Solution((0, 0), (0, 0), (0.25, 0.5), (0.75, 0.25))
    evaluation = evaluate(fleet, plan)
    # 0.1 + 4/(0.25*4) + 9/0.75 = 16.1 and 0.5 + 0.2 + 1/0.5 + 4/0.25 = 18.7
    assert evaluation.latency_s == pytest.approx([16.1, 18.7])
    assert evaluation.objective == pytest.approx(2 * 16.1 + 18.7)
    assert sum(evaluation.terms.values()) == pytest.approx(evaluation.objective)
    assert evaluation.cell_load == pytest.approx([0.75])
    assert evaluation.server_load == pytest.approx([1.0])
    assert not evaluation.violations


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Solution((0, 0), (0, 0), (0.75, 0.5), (0.5, 0.5)), "cell 0: shares sum to 1.25"),
        (Solution((0, 0), (0, 0), (0.5, 0.5), (0.9, 0.5)), "server 0: shares sum to 1.4"),
        (Solution((-1, 1), (-1, -1), (0, 0), (0, 0)), "must be served"),
        (Solution((0, 1), (-1, -1), (1, 0), (1, 0)), "needs a server"),
        (Solution((1, 1), (0, -1), (0, 0), (0, 0)), "leaves nothing"),
        (Solution((0, 1), (0, -1), (0, 0), (1, 0)), "never ends"),
        (Solution((5, 1), (0, -1), (0, 0), (1, 0)), "no cut 5"),
        (Solution((0, 1), (0, -1), (-1, 0), (1, 0)), "not within"),
        (Solution((0, 1), (0, -1), (1, 0), (1, 0)), "deadline"),
    ],
)
def test_violations_are_named(plan, words):
    fleet = _two_users(deadline_s=[3.0, 3.0])
    assert words in " ".join(evaluate(fleet, plan).violations)


def test_wrong_length_is_refused():
    with pytest.raises(InstanceError, match="2 users"):
        evaluate(_two_users(), Solution((0,), (0,), (1,), (1,)))


def test_diagnose_names_the_user():
    late = _two_users(local_s=[[0.0, 2.0], [0.5, np.inf]], deadline_s=[9.0, 1.0])
    assert "user 1 needs 5.7 s" in diagnose(late)
    assert "user 1 has no option" in diagnose(replace(late, speed=[0.0]))
    crowded = _two_users(local_s=[[0, np.inf], [0.5, np.inf]], deadline_s=[11.0, 6.0])
    assert "not all together" in diagnose(crowded)


def test_changes_by_hand():
    fleet = _two_users(resident_bytes=[[8.0, 0], [3.0, 0]], user_ids=[7, 9])
    before = Solution((1, 0, 0), (-1, 0, 0), (0, 0.5, 0.5), (0, 0.5, 0.5), (7, 9, 4))
    after = Solution((0, 0), (0, 0), (0.5, 0.5), (0.5, 0.5), (7, 9))
    found = changes(fleet, before, after)
    assert (found.arrived, found.left, found.moved, found.loaded_bytes) == ((), (4,), (7,), 8.0)
    assert changes(fleet, after, after).loaded_bytes == 0
    unnamed = changes(fleet, Solution((0,), (0,), (1,), (1,)), after)
    assert (unnamed.arrived, unnamed.moved, unnamed.loaded_bytes) == ((1,), (), 3.0)
    with pytest.raises(InstanceError, match="give the plan of the fleet"):
        changes(fleet, after, before)


def test_exports():
    assert set(family.__all__) <= set(dir(family))
