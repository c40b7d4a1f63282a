"""Routing by a trained router: bins and plans against their definitions, both against held-out queries."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.costs.answering import accuracy_interval, accuracy_needed
from edgeopt.costs.routing import score_s
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles import load_problem
from edgeopt.profiles.answers import Trace, read_answers, write_answers
from edgeopt.profiles.device import Timing
from edgeopt.profiles.problem import RoutingOptions
from edgeopt.profiles.routers import (
    Scorer,
    bins_of,
    cut_bins,
    feature_values,
    features_of,
    gains_of,
    num_bins,
    predicted,
    read_cuts,
    write_cuts,
)
from edgeopt.questions.terms import latency_terms
from edgeopt.strategies.query_classes import QueryClasses
from edgeopt.strategies.routing import Routing
from edgeopt.training.router import Fitting, fit_router, log_loss, with_training_rows
from tests.edgeopt import answer_cases
from tests.edgeopt.factories import SOURCE


def recorded(num_queries: int = 400, seed: int = 0) -> Trace:
    """Two numbers are known of each query: how hard it is, which decides, and one that says nothing."""
    rng = np.random.default_rng(seed)
    hard, noise = rng.random(num_queries), rng.random(num_queries)
    chances = 1 / (1 + np.exp(-6 * (np.array([0.3, 0.6, 0.95]) - hard[:, None])))
    base = answer_cases.trace(num_queries, seed)
    splits = np.array(["fit", "held-out", "train", "train"])[np.arange(num_queries) % 4]
    right = (rng.random((num_queries, 3)) < chances).astype(float)
    features = np.stack([noise, hard], axis=1)
    known = {"classes": np.array(["odd", "even"])[np.arange(num_queries) // 4 % 2], "splits": splits}
    return replace(base, correct=right, features=features, feature_names=("noise", "hard"), **known)


def problem(folder, trace=None, rate=0.6, **fields):
    """A phone that scores and answers, and a server; the router is trained on half of the queries."""
    router, known = fit_router(trace or recorded(), None)
    load = {"kind": "text", "prompt_tokens": 8, "new_tokens": 4, "requests_per_s": rate}
    common = {"strategy": "routing", "workload": load, "constraints": {"routing": {"by": "router", "bins": 4}}}
    one = answer_cases.problem(folder, known, **(common | fields))
    return with_router(one, router)


def with_router(one, router):
    answers = one.model.answers.model_copy(update={"router": router})
    return one.model_copy(update={"model": one.model.model_copy(update={"answers": answers})})


def chances_of(one, split):
    part, router = read_answers(one.model).part(split), one.model.answers.router
    return part, predicted(router, part.models, features_of(part, router.features))


def test_a_router_learns_what_tells_and_only_from_its_split():
    trace = recorded(1200)
    router, known = fit_router(trace, None, Fitting(most_features=2))
    assert "hard" in router.features
    weights = {name: row[router.features.index("hard")] for name, row in router.weights.items()}
    assert all(value == pytest.approx(-6, abs=2) for value in weights.values())
    others = trace.splits != "train"
    changed = replace(trace, correct=np.where(others[:, None], 1 - trace.correct, trace.correct))
    again, _ = fit_router(changed, None, Fitting(most_features=2))
    assert again.weights == router.weights
    fit = known.part("fit")
    chances = predicted(router, known.models, features_of(fit, router.features))
    base = np.broadcast_to(fit.correct.mean(axis=0), chances.shape)
    assert log_loss(chances, fit.correct) < 0.85 * log_loss(base, fit.correct)


def test_runs_of_tokens_are_found_where_nothing_else_is_known():
    rng = np.random.default_rng(1)
    queries = [rng.integers(0, 6, rng.integers(5, 12)).tolist() for _ in range(400)]
    trace = recorded()
    holds = np.array([float((2, 3) in itertools.pairwise(query)) for query in queries])
    trace = replace(trace, correct=np.stack([holds, 1 - holds, np.ones(400)], axis=1), features=None, feature_names=())
    router, known = fit_router(trace, queries, Fitting(most_features=3, longest_run=3))
    assert router.features[0] == "has 2-3"
    for n in range(0, 400, 40):
        assert feature_values(router.features, queries[n]) == known.features[n].tolist()
    assert feature_values(["length", "ends 3-4", "has 3-4", "own"], [3, 4, 5], {"own": 2.0}) == [3.0, 0.0, 1.0, 2.0]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_bins_are_of_like_size_and_of_two_models_quantiles(count):
    rng = np.random.default_rng(count)
    gains = np.stack([np.zeros(600), rng.normal(size=600)], axis=1)
    tree = cut_bins(gains, count)
    bins = bins_of(tree, gains)
    assert num_bins(tree) == count
    assert np.bincount(bins).tolist() == pytest.approx([600 / count] * count, abs=1)
    order = np.argsort(gains[:, 1])
    assert (np.diff(bins[order]) >= 0).all()
    both = rng.normal(size=(600, 3))
    tree = cut_bins(both, count)
    assert np.bincount(bins_of(tree, both)).tolist() == pytest.approx([600 / count] * count, abs=3)
    names, models = [f"bin-{k}" for k in range(count)], ["a", "b", "c"]
    assert read_cuts(write_cuts(tree, models, names), models, names) == tree
    assert num_bins(cut_bins(np.zeros((50, 3)), count)) == 1


def test_a_plan_costs_what_the_formulas_say(tmp_path):
    one = problem(tmp_path, rate=0.9, constraints={"accuracy": 0.5, "routing": {"by": "router", "bins": 4}})
    plan, technique = planner.solve(one), Routing()
    assert planner.verify(plan) == []
    fit, chances = chances_of(one, "fit")
    gains = gains_of(chances, 0)
    bins = bins_of(cut_bins(gains, 4), gains)
    instance = technique.build(one)
    seconds, measured = score_s(one.model, one.model.answers.router, one.devices[0], fit.prompt_tokens)
    assert not measured
    share = 0.9 * seconds.mean()
    by_class = one.constraints.model_copy(update={"routing": RoutingOptions()})
    entries = QueryClasses(one.model_copy(update={"constraints": by_class})).pool.entries
    pool = {(entry.model, entry.device): entry for entry in entries}
    for c in range(4):
        rows = bins == c
        assert instance.arrival_per_s[c] == pytest.approx(0.9 * rows.mean())
        assert instance.accuracy[c] == pytest.approx(fit.correct[rows].mean(axis=0))
        for (m, d), entry in pool.items():
            slower = 1 / (1 - share) if d == 0 else 1.0
            assert instance.service_s[c, m, d] == pytest.approx(slower * entry.busy_s[rows].mean())
            assert instance.square_s2[c, m, d] == pytest.approx(slower**2 * (entry.busy_s[rows] ** 2).mean())
            before = seconds[rows].mean() + 0.9 * (seconds**2).mean() / (2 * (1 - share))
            assert instance.network_s[c, m, d] == pytest.approx(before + (entry.there_s + entry.back_s)[rows].mean())
    assert instance.min_accuracy == pytest.approx(accuracy_needed(0.5, 100, 100))
    assert (plan.stages[0].device, plan.stages[0].compute_s) == ("phone", pytest.approx(seconds.mean()))
    assert plan.latency_s == pytest.approx(sum(term.seconds for term in latency_terms(plan)))
    interval = accuracy_interval(100 * plan.metrics["accuracy"], 100, 100)
    assert plan.metrics["accuracy_low"] <= interval.low
    assert interval.high <= plan.metrics["accuracy_high"]
    assert set(plan.decisions["shares"]) == {f"bin-{k}" for k in range(1, 5)}


def test_measured_scores_count_on_the_source(tmp_path):
    one = problem(tmp_path)
    fit, _ = chances_of(one, "fit")
    rows = [
        Timing(
            model="big", phase="score", dtype="float32", batch=1, tokens=tokens, unit="ms", elements=[ms], repeats=9,
            source=SOURCE,
        )
        for tokens, ms in ((3, 10.0), (8, 60.0))
    ]  # fmt: skip
    phone = one.devices[0].model_copy(update={"timings": rows})
    slow = one.model_copy(update={"devices": [phone, one.devices[1]]})
    plan = planner.solve(slow)
    assert plan.stages[0].compute_s == pytest.approx(1e-3 * (10 + 10 * (fit.prompt_tokens - 3)).mean())
    assert plan.latency_s > planner.solve(one).latency_s
    assert any("scores every query (measured)" in note for note in plan.notes)
    hopeless = slow.model_copy(update={"workload": slow.workload.model_copy(update={"requests_per_s": 50.0})})
    with pytest.raises(NoPlanError, match=r"device 'phone' takes .* ms to score a query, and workload.requests_per_s"):
        planner.solve(hopeless)


def held_out_accuracy(plan):
    """What a plan's fractions come to on the queries that nothing was decided from."""
    one = plan.problem
    trace, given = read_answers(one.model), plan.decisions
    part, tree = trace.part("held-out"), read_cuts(given["router"]["cuts"], trace.models, given["router"]["bins"])
    _, chances = chances_of(one, "held-out")
    bins = bins_of(tree, gains_of(chances, trace.models.index(given["router"]["over"])))
    right = np.zeros(len(part))
    for k, name in enumerate(given["router"]["bins"]):
        for way in given["fractions"][name]:
            right[bins == k] += way["fraction"] * part.correct[bins == k, trace.models.index(way["model"])]
    return right.mean()


def with_bins(one, count):
    routing = one.constraints.routing.model_copy(update={"bins": count})
    return one.model_copy(update={"constraints": one.constraints.model_copy(update={"routing": routing})})


def test_the_bundled_router_beats_blind_routing_on_held_out_lines():
    """One bin is routing that sees nothing of a query; the same floor is kept, and answers come sooner."""
    one = load_problem("text-router")
    blind, routed = (planner.solve(with_bins(one, count)) for count in (1, 8))
    for plan in (blind, routed):
        assert planner.verify(plan) == []
        assert plan.metrics["accuracy_low"] <= held_out_accuracy(plan) <= plan.metrics["accuracy_high"]
        assert held_out_accuracy(plan) >= 0.85
    assert routed.latency_s < 0.9 * blind.latency_s


def test_the_bundled_router_is_calibrated_and_its_features_are_those_of_the_tokens():
    pytest.importorskip("torch")
    from edgeopt.programs.answering import read_queries

    one = load_problem("text-router")
    trace, router = read_answers(one.model), one.model.answers.router
    queries = read_queries(one.model.answers.queries).queries
    for n in range(len(trace)):
        recorded_values = features_of(trace.rows(np.array([n])), router.features)[0].tolist()
        assert feature_values(router.features, queries[trace.query[n]]) == recorded_values
    for split in ("fit", "held-out"):
        part, chances = chances_of(one, split)
        for m in range(3):  # in fifths of the queries, what was promised is what came
            for rows in np.array_split(np.argsort(chances[:, m]), 5):
                said, came = chances[rows, m].mean(), part.correct[rows, m].mean()
                assert abs(said - came) <= 0.03 + 3 * np.sqrt(said * (1 - said) / len(rows)), (split, m)
        classes = trace.part("train")
        by_class = np.array([classes.correct[classes.classes == name].mean(axis=0) for name in part.classes])
        assert log_loss(chances, part.correct) < log_loss(by_class, part.correct)
    classes = QueryClasses(one)
    tree = read_cuts(classes.router.decisions()["cuts"], trace.models, classes.names)
    scorer, fit = Scorer(one.model, trace, classes.router.over, tree), trace.part("fit")
    assert [scorer.bin_of(row, queries[row]) for row in fit.query.tolist()] == classes.router.bins.tolist()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"weights": {"small": [0.0, 0.0, 0.0], "big": [0.0, 0.0, 0.0]}},
            "was trained for big, small, and the family is",
        ),
        (
            {"weights": {"small": [0.0], "medium": [0.0] * 3, "big": [0.0] * 3}},
            "weights.small: has 1 numbers for 2 features",
        ),
        ({"features": ["noise", "colour"]}, "column 'feature:colour' is missing, and the router looks at it; add it"),
    ],
)
def test_a_router_that_does_not_fit_is_refused(tmp_path, change, words):
    one = problem(tmp_path)
    fitting = {"features": ["noise", "hard"], "weights": {name: [0.0] * 3 for name in answer_cases.MODELS}}
    router = one.model.answers.router.model_copy(update=fitting | change)
    with pytest.raises(InputError, match=words):
        planner.solve(with_router(one, router))


def test_bins_and_floors_out_of_range_are_refused(tmp_path):
    one = problem(tmp_path)
    with pytest.raises(InputError, match=r"constraints.routing.bins: is 11, and 100 recorded .* lower it to 10"):
        planner.solve(with_bins(one, 11))
    for fields, words in (
        ({"bins": 3}, "bins is 3, and queries are told apart by class; add by: router"),
        ({"by": "router", "accuracy": {"odd": 0.5}}, "a router knows no class; use constraints.accuracy"),
        ({"by": "router", "bins": 65}, "less than or equal to 64"),
    ):
        with pytest.raises(ValueError, match=words):
            RoutingOptions(**fields)
    assert "needs one" in Routing().unfit(with_router(one, None))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: replace(t, splits=np.where(t.splits == "train", "fit", t.splits)),
            "0 queries have the split 'train'",
        ),
        (
            lambda t: replace(t, features=None, feature_names=()),
            "nothing is known of a query: no column 'feature:NAME'",
        ),
    ],
)
def test_traces_that_teach_nothing_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        fit_router(change(recorded()), None)


def test_training_rows_are_taken_from_fit_alone():
    trace = answer_cases.trace(80)
    moved = with_training_rows(trace, 0.5, 3)
    assert (moved.splits[trace.splits == "held-out"] == "held-out").all()
    for name in ("odd", "even"):
        fit = (trace.classes == name) & (trace.splits == "fit")
        assert (moved.splits[fit] == "train").sum() == round(0.5 * fit.sum())
    assert moved.splits.tolist() == with_training_rows(trace, 0.5, 3).splits.tolist()


def test_features_are_written_and_read(tmp_path):
    one = problem(tmp_path)
    trace = read_answers(one.model)
    assert set(trace.feature_names) <= {"hard", "noise"}
    write_answers(tmp_path / "answers.csv", trace)
    assert np.array_equal(read_answers(one.model).features, trace.features)
    path = tmp_path / "answers.csv"
    text = path.read_text().splitlines()
    path.write_text("\n".join([text[0], text[1].rpartition(",")[0] + ",red", *text[2:]]))
    with pytest.raises(InputError, match=r"feature:\w+ is 'red'; write a number$"):
        read_answers(one.model)
