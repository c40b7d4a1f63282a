"""Plans of speculative decoding against arithmetic by hand, brute force and enumeration."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.costs.drafting import expected_request
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles.checks import check_constraints, check_model
from edgeopt.profiles.problem import Constraints
from edgeopt.strategies.speculative import Speculative
from edgeopt_solvers.policy import StagedSolution, evaluate
from tests.edgeopt.factories import device, network
from tests.edgeopt.speculative_cases import acceptance, architecture, layers, problem, target
from tests.solvers.policy.stagings import pipelines


def rounds_by_enumeration(accept, length, left):
    """Expected rounds, drafted tokens and passes over one position, by following every outcome."""
    if left <= 0:
        return np.zeros(3)
    drafted = min(length, left - 1)
    total, chance = np.array([1.0, drafted, drafted == 0]), 1.0
    for k in range(drafted):
        total += chance * (1 - accept[k]) * rounds_by_enumeration(accept, length, left - k - 1)
        chance *= accept[k]
    return total + chance * rounds_by_enumeration(accept, length, left - drafted - 1)


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_expected_rounds_follow_every_outcome(length):
    accept = np.array([0.9, 0.5, 0.0, 1.0, 0.7])
    for left in (1, 2, 4, 8):
        found = expected_request(accept, length, left)
        rounds, drafted, single = rounds_by_enumeration(accept, length, left)
        assert found.rounds == pytest.approx(rounds)
        assert found.drafted == pytest.approx(drafted)
        assert found.positions.get(1, 0.0) == pytest.approx(single)


def test_a_plan_costs_what_the_formulas_say():
    # A draft step takes 0.01 s on either device, a pass over n positions 0.2 n s; the phone cannot hold the target.
    limits = {"drafting": {"min_length": 2, "max_length": 2}, "forbid": []}
    plan = planner.solve(problem(constraints=limits, model=one_draft()))
    assert plan.decisions == {
        "draft": "small", "draft_device": "server", "target_devices": ["server"], "target_cuts": [4], "draft_length": 2,
        "adaptive": False,
    }  # fmt: skip
    apart = planner.solve(problem(constraints=limits, model=one_draft(), devices=two_devices(server_memory=4.1e6)))
    assert (apart.decisions["draft_device"], apart.decisions["target_devices"]) == ("phone", ["server"])
    expected = expected_request(np.array([0.8, 0.8]), 2, 12)
    launch = 1e-9  # of each element
    verify = sum((0.2 * n + 4 * launch) * times for n, times in expected.positions.items())
    draft = expected.drafted * (0.01 + 3 * launch)
    up, down = 0.01, 0.01 + 16 / 1e6
    drafted_rounds = expected.rounds - expected.positions.get(1, 0.0)
    start = 0.01 + 56 / 1e6 + 6 * 0.2 + 4 * launch + down
    moving = drafted_rounds * (up + 16 / 1e6) + expected.drafted * 8 / 1e6 + (drafted_rounds - 1) * down
    output = 0.01 + 13 * 8 / 1e6
    assert apart.latency_s == pytest.approx(start + draft + verify + moving + output)
    assert apart.metrics["ttft_s"] == pytest.approx(start - down)
    assert apart.metrics["speed_up"] == pytest.approx(apart.metrics["target_alone_s"] / apart.latency_s)
    purposes = {(t.purpose, t.source, t.destination): t.messages for t in apart.transfers}
    assert purposes == pytest.approx(
        {
            ("input", "phone", "server"): 1, ("draft", "phone", "server"): drafted_rounds,
            ("reply", "server", "phone"): 1 + drafted_rounds, ("output", "server", "phone"): 1,
        }
    )  # fmt: skip
    tokens = 1 + 0.8 + 0.64
    steady = 12 * (2 * (0.01 + 3 * launch) + up + 32 / 1e6 + 0.6 + 4 * launch + down) / tokens
    assert apart.objective == pytest.approx(start + steady + output)
    assert apart.status == "optimal"


def one_draft():
    model = target()
    return model.model_copy(update={"drafts": {"small": model.drafts["small"]}})


def two_devices(server_memory=8e9):
    return [device("phone", gflops=10, memory=3.1e6), device("server", gflops=10, memory=server_memory)]


@pytest.mark.parametrize("latency", [0.0001, 0.02, 0.5])
@pytest.mark.parametrize("accept", [0.3, 0.8, 0.97])
def test_the_choice_is_the_best_of_all_lengths_and_devices(latency, accept):
    timings = [
        {"model": "toy", "phase": "verify", "dtype": "float32", "batch": 1, "tokens": n, "unit": "ms",
         "elements": [50 + 2 * n], "repeats": 3, "source": "made for a test"} for n in (1, 7)
    ]  # fmt: skip
    model = one_draft()
    known = [acceptance(*[accept] * 6)]
    model = model.model_copy(update={"drafts": {"small": model.drafts["small"].model_copy(
        update={"acceptance": [type(model.drafts["small"].acceptance[0]).model_validate(known[0])]})}})  # fmt: skip
    devices = [device("phone", gflops=20, memory=3.1e6), device("server", gflops=10, timings=timings)]
    case = problem(model=model, devices=devices, network=network(latency=latency))
    plan, instance = planner.solve(case), Speculative().build(case)
    ways = list(pipelines(4, 2))
    candidates = [StagedSolution(-1, -1, 0, *way) for way in ways]
    candidates += [StagedSolution(0, d, g, *way) for d in range(2) for way in ways for g in range(1, 7)]
    values = [found.objective for s in candidates if not (found := evaluate(instance, s)).violations]
    assert plan.objective == pytest.approx(min(values), rel=1e-12)
    assert planner.verify(plan) == []


def test_over_a_slow_link_the_target_decodes_alone():
    case = problem(network=network(latency=5.0), devices=two_devices(server_memory=4.1e6))
    plan = planner.solve(case)
    assert plan.decisions["draft_length"] == 0
    assert plan.metrics["speed_up"] == pytest.approx(1.0)
    assert [stage.elements for stage in plan.stages] == ["target toy"]
    assert planner.verify(plan) == []


def test_verify_names_what_was_changed():
    plan = planner.solve(problem(constraints={"drafting": {"min_length": 1}}))
    for length, finding in ((1.5, "not a number of tokens"), (99, "the draft length is 99"), (3, "draft_length")):
        if length != plan.decisions["draft_length"]:
            changed = plan.model_copy(update={"decisions": {**plan.decisions, "draft_length": length}})
            found = "; ".join(planner.verify(changed))
            assert finding in found or "objective" in found
    changed = plan.model_copy(update={"decisions": {**plan.decisions, "target_devices": ["moon"]}})
    assert "do not fit the problem" in "; ".join(planner.verify(changed))


def test_a_draft_of_another_tokenizer_or_vocabulary_is_refused_with_field_and_mend():
    assert list(check_model(target())) == []
    draft = {"layers": layers(1, 0.1), "acceptance": [acceptance(0.5), acceptance(0.6)], "tokenizer": "bytes"}
    other = target(tokenizer="characters", drafts={"odd": {**draft, "architecture": architecture(1, 12)}})
    found = {".".join(map(str, flaw.path)): (flaw.message, flaw.mend) for flaw in check_model(other)}
    assert found["drafts.odd.tokenizer"] == (
        "is 'bytes', that of 'toy' is 'characters'", "draft with a model of the same tokenizer",
    )  # fmt: skip
    assert found["drafts.odd.architecture.config.vocab_size"][0] == "is 12 tokens, 'toy' has 11"
    assert "twice" in found["drafts.odd.acceptance.1.temperature"][0]
    wrong = Constraints.model_validate({"drafting": {"min_length": 5, "max_length": 4}})
    assert [".".join(f.path) for f in check_constraints(wrong, ["a"])] == ["constraints.drafting.min_length"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"workload": {"kind": "text", "prompt_tokens": 4, "new_tokens": 4, "temperature": 0.5}}, "measured at 0, 1"),
        ({"workload": {"kind": "text", "prompt_tokens": 4, "new_tokens": 4, "batch": 2}}, "one sequence"),
        ({"objective": "energy"}, "neither energy nor quality"),
        ({"constraints": {"first": "phone"}}, "nothing to pin"),
        ({"model": target(drafts={})}, "names none under `drafts:`"),
    ],
)
def test_what_it_does_not_do_is_refused(fields, why):
    with pytest.raises(InputError, match=why):
        planner.solve(problem(**fields))


def test_a_deadline_that_cannot_be_met_is_named():
    with pytest.raises(NoPlanError, match=r"max_time_s is 0\.01 s, the least of any request is"):
        planner.solve(problem(constraints={"deadline": 0.01}))
