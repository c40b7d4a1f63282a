"""Plans of experts spread out: costs by hand, chances by enumeration, choices against brute force, refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.costs.experts import ExpertCosts, trunk_model
from edgeopt.costs.gates import GateChances, asked_subsets
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles.checks import check_constraints, check_model
from edgeopt.profiles.problem import Constraints, TextWorkload
from edgeopt.strategies.experts import Experts
from edgeopt_solvers.placement import ExpertsSolution, evaluate
from tests.edgeopt.expert_cases import EXPERT, REST, gates, mixture, pairs_of, problem
from tests.edgeopt.factories import device, network, text_problem

LAUNCH = 1e-9


def chosen(sets):
    """A mixture of four experts whose one gate chooses these pairs."""
    frequencies, pairs = pairs_of(sets, 4)
    return mixture(num_active=2, gates=gates([frequencies], [pairs]))


# ── chances ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_devices_asked_follow_from_the_pairs():
    sets = {(0, 1): 0.5, (0, 2): 0.2, (1, 3): 0.2, (2, 3): 0.1}
    known = GateChances(chosen(sets))
    assert known.frequency[0] == pytest.approx([0.7, 0.7, 0.3, 0.3])
    share = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0, 0, 1]])
    chance, asked = asked_subsets(known, 0, share, 1)
    got = {tuple(np.flatnonzero(row).tolist()): p for row, p in zip(asked, chance, strict=True) if p > 1e-12}
    assert got == pytest.approx({(0, 1): 0.5 + 0.1, (0,): 0.1, (1, 2): 0.2 + 0.05, (0, 2): 0.05})
    chance, asked = asked_subsets(known, 0, share, 2)
    # Two tokens ask neither more than device 0 with chance 0.1 each; all others follow in the same way.
    assert chance[asked.sum(axis=1) == 1].sum() == pytest.approx(0.1**2)
    assert chance.sum() == pytest.approx(1.0)
    assert chance @ asked == pytest.approx(1 - (1 - np.array([0.75, 0.85, 0.3])) ** 2)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_chances_of_sets_have_the_measured_frequencies(k):
    rng = np.random.default_rng(k)
    weights = rng.dirichlet(np.full(5, 0.7))
    sets = list(itertools.combinations(range(5), k))
    odds = np.array([math.prod(weights[list(s)]) for s in sets])
    odds /= odds.sum()
    frequencies = [sum(p for s, p in zip(sets, odds, strict=True) if e in s) for e in range(5)]
    known = GateChances(mixture(5, k, gates=gates([frequencies])))
    part = rng.random(5)
    expected = sum(p * math.prod(part[list(s)]) for s, p in zip(sets, odds, strict=True))
    assert float(known.within(0, part)) == pytest.approx(expected, rel=1e-5)


def test_without_frequencies_every_expert_is_chosen_equally_often():
    known = GateChances(mixture(4, 2))
    assert not known.measured
    assert float(known.within(0, [1, 1, 0, 0])) == pytest.approx(1 / 6)
    plan = planner.solve(problem())
    assert any("every expert is taken to be chosen equally often" in note for note in plan.notes)


# ── costs ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_trunk_is_what_the_experts_leave():
    model = mixture(4, 2)
    trunk = trunk_model(model)
    assert (trunk.name, trunk.layers[1].weights, trunk.layers[1].flop_per_token) == ("toy.trunk", 2 * EXPERT, 2e9)
    costs = ExpertCosts(model, TextWorkload(prompt_tokens=5, new_tokens=6))
    assert costs.trunk_bytes == pytest.approx(2 * EXPERT + 2 * REST + 2 * 5 * 1000)
    each, call, measured = costs.expert_s(device("d", gflops=10), 0, np.array([1.0, 3.0]))
    assert each == pytest.approx([0.1, 0.3])
    assert call == pytest.approx(6e-9)
    assert not measured


def test_measured_seconds_of_an_expert_count_before_the_roofline():
    def row(batch, tokens, ms):
        return {"model": "toy", "phase": "expert", "dtype": "float32", "batch": batch, "tokens": tokens, "unit": "ms",
                "elements": [ms], "repeats": 3, "source": "made for a test"}  # fmt: skip

    rows = [row(1, n, 5 + n) for n in (1, 9)]
    costs = ExpertCosts(mixture(), TextWorkload(prompt_tokens=5, new_tokens=6))
    each, call, measured = costs.expert_s(device("d", timings=rows), 0, np.array([1.5, 4.0]))
    assert each == pytest.approx([0.0065, 0.009])
    assert (call, measured) == (0.0, True)
    assert not costs.expert_s(device("d", timings=rows), 0, np.array([10.0]))[2]
    # Three at once take 2 (2 + n) ms more than one: what a call takes by itself is 3 ms.
    rows += [row(3, n, 5 + n + 2 * (2 + n)) for n in (1, 9)]
    each, call, _ = costs.expert_s(device("d", timings=rows), 0, np.array([1.5, 4.0]))
    assert each == pytest.approx([0.0035, 0.006])
    assert call == pytest.approx(0.003)


def test_a_trunk_that_waits_is_slower_where_that_was_measured():
    def trunk(wake):
        common = {"model": "toy.trunk", "phase": "decode", "dtype": "float32", "batch": 1, "unit": "ms", "repeats": 3}
        common |= {"elements": [0, 100, 0], "wake": wake, "source": "made for a test"}
        rows = [{**common, "context": n} for n in (5, 9)]
        desk = device("desk", gflops=10, memory=3.3e6, timings=rows)
        limits = {"experts": {"trunk": "desk"}}
        return planner.solve(problem(devices=[desk, *problem().devices[1:]], constraints=limits))

    # Of four experts, chosen equally often, two fit on the desk: half of the tokens leave it.
    slower = trunk(20.0).metrics["tpot_s"] - trunk(0.0).metrics["tpot_s"]
    assert slower == pytest.approx(0.5 * 0.02)


def test_a_plan_costs_what_the_formulas_say():
    # One layer, one expert per token, of which 0 and 1 take nearly all; two experts fit beside the trunk on the desk.
    frequency = [0.6, 0.3, 0.06, 0.04]
    links = [{"between": ["desk", "box"], "rate": 1e6, "latency": 0.01},
             {"between": ["desk", "far"], "rate": 1e6, "latency": 0.5}]  # fmt: skip
    case = problem(
        model=mixture(gates=gates([frequency])), network=network(links=links),
        constraints={"experts": {"trunk": "desk"}},
    )  # fmt: skip
    plan = planner.solve(case)
    assert plan.decisions == {
        "trunk": "desk",
        "experts": {"block": [{"desk": 1.0}, {"desk": 1.0}, {"box": 1.0}, {"box": 1.0}]},
    }
    # A decode round: 0.9 at home, 0.1 s of computing either way; 0.1 of the tokens cross, 2 messages and 2008 bytes.
    away = 0.02 + 2008 / 1e6
    decode = 0.1 + 0.1 * away
    trunk = 6 * 0.1 * 1 + 5 * 0.1 - 0.1  # 5 prompt tokens and 5 rounds at 1 GFLOP each on 10 GFLOP/s
    trunk = (5 + 5) * 0.1
    # The prefill asks the box unless all five tokens stay; the desk computes meanwhile.
    stay, go = 0.9**5, 0.1**5
    costs = ExpertCosts(case.model, case.workload)
    rows = [5 * f for f in frequency]
    assert rows[0] > 1  # an expert with any tokens takes as long as it has tokens, 0.1 s each
    home = 0.1 * 5 * 0.9 / (1 - go)
    box = 0.02 + (5 * 0.1 * 2008 / 1e6 + 0.1 * 5 * 0.1) / (1 - stay)
    prefill = stay * home + go * box + (1 - stay - go) * max(home, box)
    assert plan.metrics["ttft_s"] == pytest.approx(0.5 + prefill, rel=1e-6)
    assert plan.latency_s == pytest.approx(trunk + prefill + 5 * decode, rel=1e-6)
    assert plan.metrics["tpot_s"] == pytest.approx(0.1 + decode, rel=1e-6)
    assert costs.traffic(0, np.eye(4), 1.0)[1] == pytest.approx(np.array(frequency) * 1000)
    moved = {(t.purpose, t.source, t.destination): (t.bytes, t.messages) for t in plan.transfers}
    messages = 5 * 0.1 + 1 - stay
    assert moved == {
        ("dispatch", "desk", "box"): pytest.approx((1008.0, messages)),
        ("combine", "box", "desk"): pytest.approx((1000.0, messages)),
        ("end", "desk", "box"): (0.0, 1.0),
    }
    # One by one: every expert's own chance of a message in the prefill, and its computing, after each other.
    hits = [1 - (1 - f) ** 5 for f in frequency]
    apart = sum(0.1 * 10 * f for f in frequency)
    apart += sum(0.02 * (5 * f + hit) + 10 * f * 2008 / 1e6 for f, hit in zip(frequency[2:], hits[2:], strict=True))
    assert plan.objective == pytest.approx(trunk + apart, rel=1e-6)
    assert plan.status == "optimal"
    assert planner.verify(plan) == []
    assert [(stage.device, stage.elements, stage.memory_bytes) for stage in plan.stages] == [
        ("desk", "trunk and 2 experts", pytest.approx(1.2e6 + 1e4 + 2e6)), ("box", "2 experts", pytest.approx(2.01e6)),
    ]  # fmt: skip


def test_full_rounds_take_as_long_as_the_slowest_device():
    # Twelve tokens a round on one layer of three experts: all devices are asked each time, so the solver levels them.
    frequency = [0.5, 0.3, 0.2]
    case = problem(
        model=mixture(3, gates=gates([frequency])),
        workload={"kind": "text", "prompt_tokens": 1, "new_tokens": 3, "batch": 12},
        network=network(rate=1e6, latency=0.001), constraints={"experts": {"trunk": "desk", "max_replicas": 1}},
    )  # fmt: skip
    plan = planner.solve(case)
    assert plan.decisions["experts"]["block"][0] == {"desk": 1.0}  # what is served at home does not travel
    tokens = 3 * 12
    slowest = max(tokens * 0.5 * 0.1, 2 * 3 * 0.001 + tokens * 0.3 * (0.1 + 2008 / 1e6))
    assert plan.objective == pytest.approx(tokens * 0.1 + slowest, rel=1e-2)
    free = planner.solve(case.model_copy(update={"constraints": Constraints.model_validate(
        {"experts": {"trunk": "desk"}})}))  # fmt: skip
    assert free.objective < plan.objective
    assert free.metrics["replicas"] > 3
    assert planner.verify(free) == []


# ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch", [1, 12])
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_the_best_of_all_placements_and_trunks(batch, seed):
    rng = np.random.default_rng([seed, batch])
    frequencies = rng.dirichlet(np.full(3, 0.7), 2).round(4)
    frequencies[:, 0] += 1 - frequencies.sum(axis=1)
    sizes = rng.choice([2.1, 3.3, 5.2], 3)
    case = problem(
        model=mixture(3, layers=2, gates=gates(frequencies.tolist())),
        devices=[device(f"d{i}", gflops=float(rng.choice([5, 10, 30])), memory=1.4e6 + 1e6 * size)
                 for i, size in enumerate(sizes)],
        network=network(rate=float(rng.choice([1e5, 1e6])), latency=float(rng.choice([0.001, 0.05]))),
        workload={"kind": "text", "prompt_tokens": 3, "new_tokens": 6, "batch": batch},
        constraints={"experts": {"max_replicas": 1}},
    )  # fmt: skip
    plan, technique = planner.solve(case), Experts()
    best = math.inf
    for narrow in technique.cases(case):
        instance = technique.build(narrow)
        offset = plan_offset(technique, narrow, instance)
        for homes in itertools.product(range(3), repeat=6):
            held = np.eye(3, dtype=bool)[list(homes)].reshape(*instance.load.shape, 3)
            found = evaluate(instance, ExpertsSolution(held, held.astype(float)))
            if not found.violations:
                best = min(best, found.objective + offset)
    assert plan.objective == pytest.approx(best, rel=1e-9)
    assert plan.status == "optimal"
    assert planner.verify(plan) == []


def plan_offset(technique, case, instance):
    """Seconds of a request that are no expert's: what a plan adds to any solution's objective."""
    from edgeopt.strategies.expert_requests import Request

    return Request.of(case).trunk_s


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_experts_that_are_never_chosen_are_placed_all_the_same():
    plan = planner.solve(problem(model=mixture(gates=gates([[0.0, 0.7, 0.3, 0.0]]))))
    assert all(sum(row.values()) == 1.0 for row in plan.decisions["experts"]["block"])
    assert [plan.decisions["experts"]["block"][e] for e in (1, 2)] == [{plan.decisions["trunk"]: 1.0}] * 2
    assert planner.verify(plan) == []


def test_the_trunk_is_chosen_too():
    devices = [device("slow", gflops=1, memory=8e9), device("fast", gflops=100, memory=8e9)]
    plan = planner.solve(problem(devices=devices, network=network(rate=1e9, latency=1e-4)))
    assert plan.decisions["trunk"] == "fast"
    assert [(t.purpose, t.source, t.destination) for t in plan.transfers] == [
        ("input", "slow", "fast"), ("output", "fast", "slow"),
    ]  # fmt: skip
    assert planner.solve(plan.problem, warm_start=plan).objective == pytest.approx(plan.objective)


def test_a_plan_with_a_gap_says_it_of_the_whole_request():
    case = problem(
        model=mixture(8, 2, layers=2), workload={"kind": "text", "prompt_tokens": 4, "new_tokens": 4, "batch": 8},
        devices=[device(f"d{i}", gflops=5.0 + i, memory=8.9e6) for i in range(3)], network=network(latency=1e-4),
    )  # fmt: skip
    plan = planner.solve(case, gap=0.5)
    assert 0 < plan.gap < 0.5
    assert plan.gap == pytest.approx((plan.objective - plan.bound) / plan.objective, rel=1e-6)
    assert planner.verify(plan) == []


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"workload": {"kind": "text", "prompt_tokens": 4, "new_tokens": 4, "temperature": 0.5}}, "likeliest token"),
        ({"objective": "energy"}, "no energy and no quality"),
        ({"constraints": {"deadline": 3.0}}, "holds no budget"),
        ({"constraints": {"first": "desk"}}, "no chain of stages"),
        ({"model": text_problem().model}, "no layer of 'toy-lm' has `experts:`"),
        ({"model": mixture(gates=gates([[0.5, 0.5]]))}, r"model.gates.frequencies.0: has 2 values for 4 experts"),
        ({"constraints": {"forbid": ["desk"], "experts": {"trunk": "desk"}}}, "'desk' may compute: forbidden"),
    ],
)
def test_what_it_does_not_do_is_refused(fields, why):
    with pytest.raises(InputError, match=why):
        planner.solve(problem(**fields))


def test_an_expert_or_a_trunk_that_fits_nowhere_is_named_with_bytes_and_mend():
    small = [device("desk", gflops=10, memory=1.3e6), device("box", gflops=10, memory=0.9e6)]
    with pytest.raises(NoPlanError, match=r"memory: layer 'block' \(expert 0\) needs 1000000 bytes") as one:
        planner.solve(problem(devices=small))
    assert "add memory or a device" in str(one.value)
    with pytest.raises(
        NoPlanError, match=r"the trunk .* needs 1210000 bytes, and device 'desk' has 1000000, 210000 too"
    ):
        planner.solve(problem(devices=[device("desk", memory=1e6)]))
    tight = [device("desk", gflops=10, memory=2.3e6), device("box", gflops=10, memory=2.1e6)]
    with pytest.raises(NoPlanError, match=r"one copy of every expert needs 4000000 bytes.*add memory or a device"):
        planner.solve(problem(devices=tight))


def test_gates_of_another_shape_are_refused_with_field_and_mend():
    def findings(model):
        return {".".join(map(str, flaw.path)): (flaw.message, flaw.mend) for flaw in check_model(model)}

    assert findings(mixture(gates=gates([[0.25] * 4]))) == {}
    assert findings(mixture(layers=2, gates=gates([[0.25] * 4])))["gates.frequencies"] == (
        "has 1 rows, 'toy' has 2 layers with experts", "give one row for each of them, in order",
    )  # fmt: skip
    assert findings(mixture(gates=gates([[0.5] * 4])))["gates.frequencies.0"][0].startswith("adds up to 2; each token")
    assert "gates.pairs.0" in findings(mixture(4, 2, gates=gates([[0.5] * 4], [[0.5, 0.5]])))
    plain = text_problem().model.model_copy(update={"gates": mixture(gates=gates([[0.25] * 4])).gates})
    assert "no layer of 'toy-lm' has experts" in findings(plain)["gates"][0]
    wrong = Constraints.model_validate({"experts": {"trunk": "moon"}})
    assert [".".join(f.path) for f in check_constraints(wrong, ["a"])] == ["constraints.experts.trunk"]


def test_verify_names_what_was_changed():
    plan = planner.solve(problem(constraints={"experts": {"trunk": "desk"}}))
    rows = [dict(row) for row in plan.decisions["experts"]["block"]]
    for changed, finding in (
        ({"trunk": "box"}, "decisions.trunk is 'box'"),
        ({"experts": {"block": rows[:3]}}, "1 layers of 4 experts"),
        ({"experts": {"block": [{"moon": 1.0}, *rows[1:]]}}, "do not fit the problem"),
        ({"experts": {"block": [{"desk": 0.5}, *rows[1:]]}}, "add up to 0.5"),
        ({"experts": {"block": [{"desk": 1.0}] * 4}}, "its memory is"),
    ):
        found = planner.verify(plan.model_copy(update={"decisions": {**plan.decisions, **changed}}))
        assert finding in "; ".join(found)
