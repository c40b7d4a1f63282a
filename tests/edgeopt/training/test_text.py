"""The trained language models: what is stored is what the manifest says, and its acceptance is what they show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeopt import planner
from edgeopt.profiles import load_model, load_problem
from edgeopt.training.text.grammar import ALPHABET, corpus, decode, encode, is_held_out

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


def test_text_follows_from_its_seed_and_halves_share_no_line():
    halves = {}
    for held_out in (False, True):
        lines = corpus(3, held_out)
        halves[held_out] = [next(lines) for _ in range(300)]
        assert all(is_held_out(line) == held_out and line.endswith("\n") for line in halves[held_out])
        assert decode(encode("".join(halves[held_out]))) == "".join(halves[held_out])
    assert not set(halves[True]) & set(halves[False])
    again = corpus(3, False)
    assert [next(again) for _ in range(300)] == halves[False]


def test_files_are_those_of_the_manifest_and_small():
    from edgeopt.training.library import read_manifest, sha256
    from edgeopt.training.text import MODELS, text_folder

    folder = text_folder()
    manifest = read_manifest(folder)
    data, models = manifest["data"], manifest["models"]
    assert data["alphabet"] == ALPHABET
    assert sha256(folder / data["prompts"]) == data["prompts_sha256"]
    assert set(models) == set(MODELS)
    for name, entry in models.items():
        recipe = MODELS[name]
        assert sha256(folder / entry["file"]) == entry["sha256"], name
        assert (entry["seed"], entry["iterations"], entry["batch"]) == (recipe.seed, recipe.iterations, recipe.batch)
    bits = [models[name]["held_out_bits_per_character"] for name in ("large", "medium", "small")]
    assert bits == sorted(bits)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1.5e6


def test_prompts_are_held_out_text(tmp_path):
    from edgeopt.training.library import sha256
    from edgeopt.training.text import text_folder
    from edgeopt.training.text.checkpoints import PROMPTS, write_prompts

    assert sha256(write_prompts(tmp_path)) == sha256(text_folder() / PROMPTS)
    from safetensors.torch import load_file

    rows = load_file(tmp_path / PROMPTS)["prompts"]
    lines = decode(rows.flatten().tolist()).splitlines(keepends=True)
    assert all(is_held_out(line) for line in lines[:200])


def test_yields_are_those_of_rounds_played_one_by_one():
    from edgeopt.training.text.acceptance import positions_of, yields

    marks = (np.random.default_rng(0).random((5, 40)) < 0.7).astype(float)
    for length, found in enumerate(yields(marks, 5, starts=3)):
        made = []
        for row, place in itertools.product(marks, (1, 2, 3)):
            while length and place < len(row) - length:
                run = next((k for k in range(length) if not row[place + k]), length)
                made.append(run + 1)
                place += run + 1
        assert found == pytest.approx(np.mean(made) if length else 1.0)
    curve = positions_of(np.array([1.0, 1.5, 1.75, 1.875]))
    assert curve == pytest.approx([0.5, 0.5, 0.5])
    # the second position adds more than the first: they share the sum
    assert positions_of(np.array([1.0, 1.4, 2.0, 2.25])) == pytest.approx([0.5, 1.0, 0.5])


def test_the_profile_says_what_the_models_show():
    """Rounds of the real program on some of the prompts yield about the tokens that the profile's figures give."""
    from edgeopt.programs.drafting import CachedScorer, Drafter, Verifier
    from edgeopt.programs.speculative import draw_prompt

    model, length, made, rounds = load_model("text"), 4, 0, 0
    plan = planner.solve(load_problem("text-speculative"))
    assert plan.problem.workload.prompt_tokens == 64
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "max_tokens": 160}
    name = str(plan.decisions["draft"] or "small")
    draft = CachedScorer(model.drafts[name].architecture, **options)
    target = CachedScorer(model.architecture, **options)
    with torch.inference_mode():
        for seed in range(12):
            draft.reset()
            target.reset()
            prompt = draw_prompt(model, plan.problem.workload, seed)[0].tolist()
            drafter, verifier = Drafter(draft, 0.0, seed), Verifier(target, 0.0, seed)
            last = [verifier.start(prompt)]
            drafter.start(prompt)
            while len(verifier.settled) < 64 + 56:
                drafter.settle(last)
                guesses, guessed = drafter.guess(length)
                count, token = verifier.check(guesses, guessed)
                last = [*guesses[:count], token]
                made, rounds = made + count + 1, rounds + 1
    accept = model.drafts[name].acceptance[0].by_position
    assert made / rounds == pytest.approx(1 + sum(np.cumprod(accept[:length])), rel=0.12)


def test_the_bundled_problem_drafts_on_the_phone_and_makes_the_targets_text():
    from edgeopt.programs import reference
    from edgeopt.programs.parties import rehearse

    problem = load_problem("text-speculative")
    plan = planner.solve(problem)
    assert plan.decisions["draft_device"] == "phone"
    assert plan.decisions["draft_length"] >= 1
    assert plan.metrics["speed_up"] > 1.2
    assert planner.verify(plan) == []
    for seed in range(3):
        assert rehearse(plan, seed)[0].tolist() == reference(plan, seed)[0].tolist()


def test_training_repeats_itself_and_learns():
    from dataclasses import replace

    from edgeopt.training.text.models import MODELS, stream, train_model

    tokens = stream(0, 20_000, held_out=False)
    recipe = replace(MODELS["small"], iterations=30, batch=4)
    (one, loss), (other, again) = train_model(recipe, tokens), train_model(recipe, tokens)
    assert loss == again < 3.3
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_answers_are_those_of_held_out_lines_and_tell_sizes_apart():
    """A few queries of each class, asked again; the trace's own figures for the rest."""
    from edgeopt.profiles.answers import read_answers
    from edgeopt.programs.answering import answer, read_queries
    from edgeopt.programs.drafting import CachedScorer
    from edgeopt.training.text.answers import MOST_TOKENS, questions

    model = load_model("text")
    trace, known = read_answers(model), read_queries(model.answers.queries)
    assert len(trace) == len(known.queries) == len({tuple(query) for query in known.queries}) >= 600
    for kind in set(trace.classes.tolist()):
        part = trace.classes == kind
        counts = [int((part & (trace.splits == split)).sum()) for split in ("fit", "held-out", "train")]
        assert abs(counts[0] - counts[1]) <= 1
        assert counts[2] >= 20
    small, medium, large = (trace.correct[:, trace.models.index(name)].mean() for name in ("small", "medium", "text"))
    assert small + 0.2 < medium < large - 0.2
    for name, query, told in questions(7, {"when": 3, "spelling": 3, "day": 3}):
        line = (query + told).strip("\n").split("\n")[-1] + "\n"
        assert is_held_out(line), name
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "max_tokens": 162 + MOST_TOKENS}
    for name in trace.models:
        architecture = model.architecture if name == "text" else model.drafts[name].architecture
        scorer, m = CachedScorer(architecture, **options), trace.models.index(name)
        with torch.inference_mode():
            for n in range(0, 640, 80):
                scorer.reset()
                said = answer(scorer, known.queries[n], known.stop, MOST_TOKENS)
                assert (said.tokens == known.answers[n]) == bool(trace.correct[n, m])
                assert said.confidence == pytest.approx(trace.confidence[n, m], abs=2e-4)
                assert len(said.tokens) == trace.tokens[n, m]
