"""What a pipeline may choose beside its stages: formats of weights, chunks of the prompt, and what is to be small."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations, product

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.costs.language import LanguageCosts
from edgeopt.errors import InputError, NoPlanError
from edgeopt.questions.why_not import why_not
from edgeopt.strategies.pipeline import Pipeline
from edgeopt_solvers.chain import Solution, evaluate
from tests.edgeopt.factories import SOURCE, device, language_model, network, text_problem

#: Losses by element: embedding, four blocks, head.
LOSS = {"int8": [0.0, 0.01, 0.02, 0.01, 0.02, 0.0], "int4": [0.0, 0.1, 0.3, 0.2, 0.1, 0.0]}


def small_model(margin=None):
    """Blocks of 1 GB, or 0.26 in 8 and 0.13 in 4 bits, whose reading takes all their time."""
    model = language_model(block_gflop=1e-6)
    layers = [
        layer.model_copy(update={"weights_by_dtype": {"int8": 0.26e9, "int4": 0.13e9}})
        if layer.name == "block"
        else layer
        for layer in model.layers
    ]
    quality = {"form": "weights", "metric": "loss", "loss": LOSS, "margin": margin, "source": SOURCE}
    return type(model).model_validate(
        model.model_copy(update={"layers": layers}).model_dump(by_alias=True) | {"quality": quality}
    )


def devices(*memory):
    rates = (1e9, 2e9, 4e9)
    return [
        device(f"d{i}", memory=room, memory_bandwidth=rate)
        for i, (room, rate) in enumerate(zip(memory, rates, strict=False))
    ]


def solutions(chain):
    """Every way to place the chain."""
    for count in range(1, chain.num_devices + 1):
        for inner in combinations(range(1, chain.num_elements), count - 1):
            for chosen in permutations(range(chain.num_devices), count):
                for variants in product(range(chain.num_variants), repeat=count):
                    solution = Solution((*inner, chain.num_elements), chosen, variants)
                    if not evaluate(chain, solution).violations:
                        yield solution


@pytest.mark.parametrize("limit", [0.0, 0.03, 0.25, 0.75])
@pytest.mark.parametrize("margin", [None, 0.2])
def test_formats_are_the_best_that_the_loss_allows(limit, margin):
    problem = text_problem(
        model=small_model(margin), devices=devices(2.2e9, 2.2e9), constraints={"quality": limit}, network=network(1e8)
    )
    plan = planner.solve(problem)
    chain = Pipeline().build(problem)
    assert plan.objective == pytest.approx(min(evaluate(chain, s).objective for s in solutions(chain)))
    lost = sum(sum(LOSS[s.variant][s.start : s.stop]) for s in plan.stages if s.variant)
    assert plan.quality == pytest.approx(lost)
    assert lost * (1 + (margin or 0)) <= limit + 1e-12
    assert planner.verify(plan) == []
    for stage in plan.stages:
        blocks = min(stage.stop, 5) - max(stage.start, 1)
        weights = blocks * {None: 1e9, "int8": 0.26e9, "int4": 0.13e9}[stage.variant]
        assert stage.memory_bytes == pytest.approx(weights, abs=5e6)
        terms = plan.problem.devices[plan.devices[stage.index]].memory_bandwidth
        assert stage.compute_s == pytest.approx(5 * weights / terms, rel=0.05), "weights are read once a round"


def test_a_loss_that_nobody_allowed_is_not_taken():
    problem = text_problem(model=small_model(), devices=devices(2.2e9, 2.2e9))
    plan = planner.solve(problem)
    assert {stage.variant for stage in plan.stages} == {None}
    assert plan.quality is None
    with pytest.raises(NoPlanError):
        planner.solve(problem.model_copy(update={"devices": devices(1.2e9, 1.2e9)}))
    fits = text_problem(model=small_model(), devices=devices(1.2e9, 1.2e9), constraints={"quality": 0.1})
    assert {stage.variant for stage in planner.solve(fits).stages} == {"int8"}


def test_losses_that_do_not_fit_the_layers_are_refused():
    from edgeopt.profiles.checks import check_model

    model = small_model()
    quality = model.quality.model_copy(update={"loss": {"int8": [0.0, 1.0], "float16": LOSS["int8"]}})
    flaws = [f"{flaw.path}: {flaw.message}" for flaw in check_model(model.model_copy(update={"quality": quality}))]
    assert any("2 losses for 6 elements" in text for text in flaws)
    assert any("float16" in text and "no layer" in text for text in flaws)


def test_a_format_that_was_not_timed_is_corrected_by_the_one_that_was():
    model = small_model()
    problem = text_problem(model=model, workload={"kind": "text", "prompt_tokens": 10, "new_tokens": 3})
    whole = LanguageCosts(model, problem.workload)
    bare = device("d", memory_bandwidth=1e9)
    rows = [
        {"model": "toy-lm", "phase": phase, "dtype": "float32", "batch": 1, "tokens": tokens, "context": context,
         "unit": "s", "elements": [3.0 * value for value in elements], "repeats": 3, "source": SOURCE}
        for phase, tokens, context, elements in [
            ("prefill", 10, 0, whole.prefill_s(bare)[0]), ("decode", 1, 10, whole.decode_s(bare)[0][0]),
            ("decode", 1, 11, whole.decode_s(bare)[0][1]),
        ]
    ]  # fmt: skip
    timed = type(bare).model_validate(bare.model_dump(by_alias=True) | {"timings": rows})
    small = replace(whole, weights="int8")
    assert whole.prefill_s(timed)[1]
    assert not small.prefill_s(timed)[1]
    np.testing.assert_allclose(small.prefill_s(timed)[0], 3.0 * small.prefill_s(bare)[0])
    np.testing.assert_allclose(small.decode_s(timed)[0], 3.0 * small.decode_s(bare)[0])


def chunked(chunk, objective="latency", **fields):
    load = {"kind": "text", "prompt_tokens": 40, "new_tokens": 4, "prefill_chunk": chunk}
    three = [
        device("a", gflops=1, memory=2.4e9),
        device("b", gflops=2, memory=2.4e9),
        device("c", gflops=3, memory=2.4e9),
    ]
    return text_problem(
        **{"workload": load, "objective": objective, "devices": three, "network": network(1e6, 0.005), **fields}
    )


def simulated_ttft_s(problem, plan):
    """Let every chunk pass stages and links one after the other, each of which works on one chunk at a time."""
    costs = LanguageCosts(problem.model, problem.workload)
    chunks = len(problem.workload.chunks)
    source, free, done = plan.problem.devices[0].name, {}, 0.0
    first = plan.stages[0].device
    arrived = 0.0 if first == source else 0.005 + costs.prefill_cut_bytes(0) / 1e6
    for _ in range(chunks):
        now = arrived
        for k, (index, stage) in enumerate(zip(plan.devices, plan.stages, strict=True)):
            if k:
                now = max(now, free.get(("link", k), 0.0)) + costs.prefill_cut_bytes(stage.start) / chunks / 1e6
                free["link", k] = now
                now += 0.005  # a link carries the next chunk while this one is on its way
            seconds = costs.prefill_s(problem.devices[index])[0][stage.start : stage.stop].sum() / chunks
            now = max(now, free.get(("stage", k), 0.0)) + seconds
            free["stage", k] = now
        done = now
    return done


@pytest.mark.parametrize("objective", ["latency", "ttft"])
@pytest.mark.parametrize("chunk", [4, 10, 40])
def test_chunks_overlap_as_jobs_of_a_flow_shop_do(chunk, objective):
    problem = chunked(chunk, objective)
    plan = planner.solve(problem)
    assert len(plan.stages) >= 2
    assert plan.metrics["ttft_s"] == pytest.approx(simulated_ttft_s(problem, plan))
    assert plan.objective == pytest.approx(plan.latency_s if objective == "latency" else plan.metrics["ttft_s"])
    assert planner.verify(plan) == []
    technique, best = Pipeline(), np.inf
    chain = technique.build(problem)
    for solution in solutions(chain):
        best = min(best, technique.plan(problem, chain, _result(chain, solution)).objective)
    assert plan.status == "optimal"
    assert plan.bound == pytest.approx(best)
    assert plan.objective == pytest.approx(best)


def _result(chain, solution):
    from edgeopt_solvers import Result, Status

    found = evaluate(chain, solution)
    return Result(Status("optimal", True), found.objective, 0.0, solution, "drawn", 0.0, dict(found.metrics))


def test_auto_takes_the_best_number_of_chunks():
    plan = planner.solve(chunked("auto", network=network(1e7, 0.001)))
    assert plan.problem.workload.prefill_chunk in (None, 20)  # 16 tokens is the least
    whole = planner.solve(chunked(None, network=network(1e7, 0.001)))
    assert plan.latency_s < whole.latency_s
    reading = [device(name, memory=2.4e9, memory_bandwidth=1e9) for name in "abc"]
    again = planner.solve(chunked("auto", devices=reading, model=language_model(block_gflop=1e-6)))
    assert again.problem.workload.prefill_chunk is None, "every chunk reads the weights anew"
    assert planner.verify(plan) == []


def test_chunks_with_limits_that_cannot_be_kept_are_refused():
    with pytest.raises(InputError, match="deadline"):
        planner.solve(chunked(10, constraints={"deadline": 100.0}))
    with pytest.raises(InputError, match="prefill_chunk"):
        planner.solve(chunked(10, objective={"latency": 1.0, "throughput": 1.0}))


@pytest.mark.parametrize("objective", ["ttft", "tpot"])
def test_token_objectives_are_the_best_of_all_plans(objective):
    problem = chunked(None, objective)
    plan = planner.solve(problem)
    assert plan.status == "optimal"
    assert plan.objective == pytest.approx(plan.metrics[f"{objective}_s"])
    assert planner.verify(plan) == []
    whole = chunked(None)
    chain = Pipeline().build(whole)
    each = [Pipeline().plan(whole, chain, _result(chain, solution)).metrics for solution in solutions(chain)]
    assert plan.objective == pytest.approx(min(metrics[f"{objective}_s"] for metrics in each))


def test_a_device_that_is_dropped_has_a_price_and_only_tokens_return():
    problem = text_problem(
        workload={"kind": "text", "prompt_tokens": 10, "new_tokens": 5, "batch": 3},
        devices=[
            device("phone", gflops=1, memory=3e9),
            device("server", gflops=10, memory=3e9),
            device("snail", gflops=0.1),
        ],
    )
    plan = planner.solve(problem)
    assert "snail" not in {stage.device for stage in plan.stages}
    answer = why_not(plan, "snail")
    assert "snail" in {stage.device for stage in answer.plan.stages}
    assert answer.proven
    assert answer.price == pytest.approx(answer.plan.objective - plan.objective)
    assert answer.price > 0
    loop = next(t for t in plan.transfers if t.purpose == "loop")
    assert (loop.bytes, loop.messages) == (4 * 3 * 8, 4), "a token of 8 bytes for each sequence, no logits"


def test_prices_of_plans_in_chunks_are_those_of_plans_that_overlap():
    problem = chunked(10)
    plan = planner.solve(problem)
    names = {stage.device for stage in plan.stages}
    spare = next(d.name for d in problem.devices if d.name in names and d.name != "a")
    left = problem.constraints.model_copy(update={"forbid": [spare]})
    answer = why_not(plan, f"without {spare}")
    assert answer.price == pytest.approx(
        planner.solve(problem.model_copy(update={"constraints": left})).objective - plan.objective
    )
    with pytest.raises(InputError, match="overlap"):
        why_not(plan, "head on a")
