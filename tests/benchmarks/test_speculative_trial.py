"""The trial of speculative decoding: turns that any length can take, and rounds counted as they are played."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from edgeopt.profiles import load_model
from edgeopt.programs.parties import rehearse
from tests.benchmarks import llm_planners
from tests.benchmarks.campaign.turns import Turns, reference
from tests.benchmarks.speculative import (
    FULL,
    LONGEST,
    Priced,
    Setting,
    balanced,
    between,
    played,
    problem_of,
    schedule,
)
from tests.benchmarks.speculative_page import NEW, PROMPT, decomposed, table

pytestmark = pytest.mark.torch

PASSES = {
    "target": {n: 1e-3 * (1 + 0.05 * n) for n in (1, 2, LONGEST + 1)},
    "draft": {1: 2e-4, 0: 5e-4},
    "yardstick": {0: 2e-5},
    "messages": {0: 2e-4},
}
for side in ("target", "draft"):
    PASSES[side][-PROMPT] = 2e-3


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
    prompts = list(range(100, 100 + FULL.prompts))
    turns = schedule(5, prompts, FULL)
    rows = {length: [row for asked, row in turns if asked == length] for length in (0, -5, 4, 5, 6)}
    assert len(turns) == sum(map(len, rows.values()))
    assert rows[4] == rows[5] == rows[6] == prompts
    assert len(rows[0]) == FULL.alone
    assert len(rows[-5]) == FULL.adaptive
    assert max(rows[0]) - min(rows[0]) > FULL.prompts / 2
    assert {length for length, _ in schedule(LONGEST, prompts, FULL)} == {0, -LONGEST, LONGEST - 1, LONGEST}


def test_a_balanced_sample_takes_as_many_rounds_as_all_prompts():
    rng = random.Random(0)
    marks = [[float(rng.random() < ease) for _ in range(NEW)] for ease in [rng.random() for _ in range(60)]]
    rows = balanced(marks, [4, 5], FULL, seed=1)
    assert len(set(rows)) == FULL.prompts
    for length in (4, 5):
        assert played([marks[row] for row in rows], length).rounds == pytest.approx(
            played(marks, length).rounds, rel=0.05
        )


@pytest.mark.parametrize("length", [0, 4, -4])
def test_a_turn_makes_the_targets_own_text(length):
    case = priced()
    plan = case.plan(6, [[length, 7]])
    assert plan.decisions["stop_below"] > 0
    (text,) = rehearse(plan, 0, Turns)
    assert text.shape == (1, NEW)
    assert torch.equal(text, reference(plan, 0)[0])


def test_what_was_measured_twice_counts_on_average():
    before = {"target": {1: 1.0, 2: 3.0}, "messages": {0: 5.0}}
    assert between(before, {"target": {1: 2.0, 2: 4.0}}) == {"target": {1: 1.5, 2: 3.5}, "messages": {0: 5.0}}


def test_rounds_that_were_counted_replace_the_expected_ones():
    case = priced()
    easy, hard = played([[1.0] * NEW], 4), played([[0.0] * NEW], 4)
    assert case.latency_s(4, easy) < case.latency_s(4) < case.latency_s(4, hard)
    parts = case.parts(4, easy)
    assert sum(parts.values()) == pytest.approx(case.latency_s(4, easy))
    # 63 tokens in rounds of five, the last one of three: what a round takes beside its steps comes thirteen times
    assert parts["draft"] == pytest.approx((2e-3 + easy.drafted * 2e-4 + 13 * 5e-4) / 0.5)


def test_the_target_alone_is_priced_by_tokens_that_follow_each_other_and_rounds_by_passes_after_rests():
    case = priced()
    faster = {**PASSES, "target": {**PASSES["target"], 1: 1e-4}}
    other = Priced(problem_of(Setting(0.5, 0.1, 0.005, "small"), load_model("text"), faster), 0)
    assert case.latency_s(0) - other.latency_s(0) == pytest.approx((NEW - 1) * (1.05e-3 - 1e-4) / 0.1)
    assert other.latency_s(4) <= case.latency_s(4)
    assert other.latency_s(4) > 0.98 * case.latency_s(4)


def test_sections_have_a_row_for_every_setting_and_planner():
    row = {
        "setting": {"draft_quota": 0.5, "target_quota": 0.1, "latency_s": 0.005, "draft": "small"},
        "draft_device": "phone", "chosen": 4, "best": 5, "above_best": 0.02, "above_best_fair": 0.0, "adaptive": -0.1,
        "speed_up": 2.0, "predicted_speed_up": 2.1, "error": 0.05, "counted_error": 0.01, "texts": 10, "equal": True,
        "seconds": {"0": 2.0, "4": 1.02, "5": 1.0},
    }  # fmt: skip
    parts = {"draft": 0.1, "target": 0.2, "messages": 0.05}
    row |= {"parts": parts, "predicted_parts": parts, "alone_parts": parts, "predicted_alone_parts": parts}
    row |= {"rounds": 9.5, "predicted_rounds": 9.0, "drift": 0.1, "planned_error": 0.02}
    assert "drifted by +10%, planned before it +2.0%" in decomposed(row)
    assert "draft 100/100, target 200/200, messages 50/50, rounds 9.0/9.5" in decomposed(row)
    lines = table([row, row | {"equal": False}])
    assert lines.count("| 50%, 10% | 5 | small | 100/100 | 200/200 | 50/50 | 9.0/9.5 | 200/200 |") == 2
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
    assert any(line.replace(" ", "") == "|HALDA|0|||||||" for line in lines)
    assert any(line.startswith("| equal split (transformers) | 1 of 1 | 2.000 | 2.00 | 2.0 |") for line in lines)
