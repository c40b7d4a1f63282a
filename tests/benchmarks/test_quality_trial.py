"""The quality trial's own arithmetic: what it judges was never fitted, what it writes replaces its own section only."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.profiler.quality.family import calibration_plans, check_plans
from edgeopt_solvers import solve
from edgeopt_solvers.chain import evaluate
from tests.benchmarks.diffusion import curve, surrogate
from tests.benchmarks.diffusion.bench import Bench, limited, steps_of
from tests.benchmarks.diffusion.splitting import split_chain
from tests.benchmarks.sections import with_section

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(True, tmp_path_factory.mktemp("trial") / "samples.jsonl")


def test_the_trial_judges_plans_of_both_orders_that_no_fit_has_seen(bench):
    plans = surrogate.trial_plans(bench, 8)
    assert len(plans) == len({tuple(plan) for _, plan in plans}) == 32
    best = bench.names.index("large")
    fitted = calibration_plans(len(bench.names), bench.steps, 4, best) + check_plans(4, bench.steps, 20, 0)
    assert not {tuple(plan) for _, plan in plans} & {tuple(plan) for plan in fitted}
    sizes = {bench.names.index(name): size for size, name in enumerate(surrogate.SIZES)}
    for kind, plan in plans:
        order = [sizes[v] for v in plan]
        assert len(set(order)) == int(kind[0])
        assert order == sorted(order, reverse=kind.endswith("falling"))
        assert len(plan) == bench.steps


def test_the_bench_predicts_as_the_planner_does_and_samples_once(bench):
    from edgeopt import planner

    plan = planner.solve(bench.problem())
    run = steps_of(plan)
    assert bench.predicted(run) == pytest.approx(plan.quality)
    cheap = [bench.names.index("small")] * bench.steps
    first = bench.sampled(cheap)
    assert bench.sampled_now == 1
    again = Bench(True, bench._store)
    assert (again.sampled(cheap), again.sampled_now) == (first, 0)
    assert bench.without_margin(bench.problem()).model.quality.margin == 0


def test_split_runs_every_block_at_every_step(bench):
    problem = limited(curve.tight_problem(bench, 500), forbid=["phone"])
    chain = split_chain(problem, "large")
    result = solve(chain)
    assert set(result.solution.devices) == {1, 2}
    costs = DiffusionCosts(problem.model, problem.workload)
    step_s = costs.terms(problem.devices[1])[0]["large"].total
    assert chain.compute_s[1, 0].sum() == pytest.approx(25 * step_s)
    link = problem.network.default
    cut = result.solution.cuts[0]
    features = 16 * problem.model.variants["large"].blocks[cut - 1].output
    latent = 16 * problem.model.latent
    moving = 25 * (link.latency + features / link.rate) + 24 * (link.latency + latent / link.rate)
    ends = 2 * link.latency + (16 * problem.model.prompt + latent) / link.rate
    assert evaluate(chain, result.solution).metrics["latency_s"] == pytest.approx(25 * step_s + moving + ends)


def test_a_fixed_pair_is_never_better_than_the_plan_within_its_time(bench):
    problem = curve.tight_problem(bench)
    grid = curve._grid(bench, problem)
    assert len(grid) == 12 * len(curve.CUTS)
    for option in grid[::9]:
        chosen = curve._multi(bench, problem, deadline=option.latency_s * (1 + 1e-9))
        assert chosen.latency_s <= option.latency_s * (1 + 1e-6)
        assert bench.predicted(chosen.run) <= bench.predicted(option.run) + 1e-9


def test_sections_are_replaced_where_they_stand():
    page = "# Title\n\nhead\n\n## One\n\nold\n\n### sub\n\n## Two\n\ntwo\n"
    once = with_section(page, "One", ["new", "", "| a |"])
    assert once == "# Title\n\nhead\n\n## One\n\nnew\n\n| a |\n\n## Two\n\ntwo\n"
    assert with_section(once, "One", ["new", "", "| a |"]) == once
    assert with_section(once, "Two", ["2"]).endswith("| a |\n\n## Two\n\n2\n")
    assert with_section(once, "Three", ["3"]).endswith("two\n\n## Three\n\n3\n")
