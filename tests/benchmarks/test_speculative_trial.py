"""The trial of speculative decoding: turns that any length can take, and rounds counted as they are played."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from edgeopt.profiles import load_model
from edgeopt.programs.parties import rehearse
from tests.benchmarks import llm_planners
from tests.benchmarks.campaign.turns import Turns, reference
from tests.benchmarks.speculative import FULL, LONGEST, Priced, Setting, played, problem_of, schedule, table

NEW = PROMPT = 64

pytestmark = pytest.mark.torch

PASSES = {"target": {n: 1e-3 * (1 + 0.05 * n) for n in (1, LONGEST + 1)}, "draft": {1: 2e-4}}
for side in PASSES.values():
    side[-PROMPT] = 2e-3


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def priced():
    return Priced(problem_of(Setting(0.5, 0.1, 0.005, "small"), load_model("text"), PASSES), 0)


def test_rounds_are_counted_as_they_are_played():
    marks = [[1, 1, 0, 1, 1, 1, 1, 1]]  # one of two is taken, then both, then there is use for one only
    found = played(marks, 2)
    assert (found.rounds, found.drafted, found.positions) == (3, 5, {3: 2.0, 2: 1.0})
    alone = played(marks, 0)
    assert (alone.rounds, alone.drafted, alone.positions) == (7, 0, {1: 7.0})


def test_every_length_meets_the_same_prompts_and_the_target_alone_is_spread():
    turns = schedule(5, 100, FULL)
    rows = {length: [row for asked, row in turns if asked == length] for length in (0, -5, 4, 5, 6)}
    assert len(turns) == sum(map(len, rows.values()))
    assert rows[4] == rows[6] == rows[-5] == list(range(100, 100 + FULL.neighbours))
    assert rows[5] == list(range(100, 100 + FULL.planned))
    assert len(rows[0]) == FULL.alone
    assert max(rows[0]) - min(rows[0]) > FULL.planned / 2
    assert {length for length, _ in schedule(LONGEST, 0, FULL)} == {0, -LONGEST, LONGEST - 1, LONGEST}


@pytest.mark.parametrize("length", [0, 4, -4])
def test_a_turn_makes_the_targets_own_text(length):
    case = priced()
    plan = case.plan(6, [[length, 7]])
    assert plan.decisions["stop_below"] > 0
    (text,) = rehearse(plan, 0, Turns)
    assert text.shape == (1, NEW)
    assert torch.equal(text, reference(plan, 0)[0])


def test_rounds_that_were_counted_replace_the_expected_ones():
    case = priced()
    easy, hard = played([[1.0] * NEW], 4), played([[0.0] * NEW], 4)
    assert case.latency_s(4, easy) < case.latency_s(4) < case.latency_s(4, hard)
    parts = case.parts(4, easy)
    assert sum(parts.values()) == pytest.approx(case.latency_s(4, easy))
    assert parts["draft"] == pytest.approx((2e-3 + easy.drafted * 2e-4) / 0.5)


def test_sections_have_a_row_for_every_setting_and_planner():
    row = {
        "setting": {"draft_quota": 0.5, "target_quota": 0.1, "latency_s": 0.005, "draft": "small"},
        "draft_device": "phone", "chosen": 4, "best": 5, "above_best": 0.02, "above_best_fair": 0.0, "adaptive": -0.1,
        "speed_up": 2.0, "predicted_speed_up": 2.1, "error": 0.05, "counted_error": 0.01, "texts": 10, "equal": True,
        "seconds": {"0": 2.0, "4": 1.02, "5": 1.0},
    }  # fmt: skip
    lines = table([row, row | {"equal": False}])
    assert (
        sum(line.startswith("| 50%, 10% | 5 | small on phone | 4 | 0, 4, **5** | 2.0% (0.0%) |") for line in lines) == 2
    )
    assert "| texts equal to the target's own | all | NOT ALL of 20 |" in lines
    slower = dict.fromkeys(llm_planners.PLANNERS, 2.0)
    found = llm_planners.summary([llm_planners.Row("m", 8.0, 10.0, 2, 1.0, 1.0, slower | {"halda": None})])
    measured = {"ours": 1.0, "halda": 1.5}
    cluster = {"rate_mbit_per_s": 10.0, "devices": ("speed-25", "speed-100"), "measured_s": measured, "equal": True}
    lines = llm_planners.section(found, {"clusters": [cluster]})
    assert "| 10 Mbit/s, 25%, 100% | 1.00 | – | – | – | 1.50 (1.50) | – |" in lines
    assert "| HALDA | 0 | | | | | | |" in lines
    assert any(line.startswith("| equal split (transformers) | 1 of 1 | 2.000 | 2.00 | 2.0 |") for line in lines)
