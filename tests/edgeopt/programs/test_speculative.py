"""Drafting and verifying: the target's own tokens, the target's own distribution, caches that roll back."""

from __future__ import annotations

import itertools

import pytest

from edgeopt import planner
from tests.edgeopt.speculative_cases import problem, target

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


def planned(length, *, draft="small", temperature=0.0, adaptive=False, forbid=(), vocabulary=11, new_tokens=13):
    model = target(vocabulary)
    model = model.model_copy(update={"drafts": {draft: model.drafts[draft]}})
    drafting = {"min_length": 0 if adaptive else length, "max_length": 6 if adaptive else max(1, length)}
    load = {"kind": "text", "prompt_tokens": 6, "new_tokens": new_tokens, "temperature": temperature}
    case = problem(model=model, workload=load, constraints={"drafting": drafting | {"adaptive": adaptive}})
    plan = planner.solve(case)
    places = {"draft": draft, "draft_device": "phone", "target_devices": ["server"], "draft_length": length}
    places["target_cuts"] = [4]
    if forbid:
        places |= {"draft_device": forbid, "target_devices": [forbid]}
    if not length:
        places |= {"draft": None, "draft_device": None}
    decisions = {**plan.decisions, **places, "adaptive": adaptive}
    # The devices' memories are no matter here: written down as planned, whatever the solver preferred.
    from edgeopt.strategies.speculative import Speculative
    from edgeopt_solvers import Result, Status

    technique = Speculative()
    instance = technique.build(case)
    solution = technique.solution(plan.model_copy(update={"decisions": decisions}))
    value = technique.evaluate(instance, solution).objective
    result = Result(Status("optimal", True), value, value, solution, "exact", 0.0)
    return technique.plan(case, instance, result)


@pytest.mark.parametrize(
    ("length", "draft", "adaptive", "place"),
    [
        (0, "small", False, ""), (1, "small", False, ""), (4, "small", False, ""), (3, "twin", False, ""),
        (2, "small", True, ""), (2, "twin", True, "server"), (3, "small", False, "phone"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_of_one_process(length, draft, adaptive, place, temperature):
    from edgeopt.programs import build, reference
    from edgeopt.programs.parties import rehearse

    plan = planned(length, draft=draft, adaptive=adaptive, forbid=place, temperature=temperature)
    assert plan.decisions["draft_length"] == length
    for seed in range(2):
        (tokens,), (expected,) = rehearse(plan, seed), reference(plan, seed)
        assert tokens.shape == (1, 13)
        assert tokens.tolist() == expected.tolist()
    assert build(plan, ()).max_message_bytes >= 4 * 12


def test_a_twin_is_always_taken_whole():
    from edgeopt.programs.drafting import CachedScorer, Drafter, Verifier

    options = {"dtype": torch.float32, "device": torch.device("cpu"), "max_tokens": 64}
    model = target()
    drafter = Drafter(CachedScorer(model.drafts["twin"].architecture, **options), 0.0, 0)
    verifier = Verifier(CachedScorer(model.architecture, **options), 0.0, 0)
    with torch.inference_mode():
        prompt = [1, 2, 3, 4]
        last = [verifier.start(prompt)]
        drafter.start(prompt)
        for _ in range(4):
            drafter.settle(last)
            guesses, guessed = drafter.guess(3)
            count, token = verifier.check(guesses, guessed)
            assert count == 3
            last = [*guesses, token]
            assert verifier.scorer.num_cached == len(verifier.settled) - 1
            assert drafter.scorer.num_cached <= len(verifier.settled) - 1


def chi_square(counts, chances, total):
    return sum((counts.get(cell, 0) - total * p) ** 2 / (total * p) for cell, p in chances.items())


def test_rejection_sampling_has_the_targets_distribution():
    from edgeopt.programs.drafting import taken

    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(2 * torch.randn(3, 4, generator=generator), -1)
    q = torch.softmax(2 * torch.randn(2, 4, generator=generator), -1)
    counts, total = {}, 3000
    for _ in range(total):
        guesses = [int(torch.multinomial(row, 1, generator=generator)) for row in q]
        count, token = taken(guesses, q, p, generator)
        first, *_ = [*guesses[:count], token]
        counts[first] = counts.get(first, 0) + 1
    assert chi_square(counts, dict(enumerate(p[0].tolist())), total) < 16.3  # 3 degrees of freedom, 0.1 %
    assert chi_square(counts, dict(enumerate(q[0].tolist())), total) > 100  # it is not the draft's


def test_sampled_tokens_have_the_targets_distribution():
    """Two tokens after the first, of a vocabulary of three, against the target's own probabilities."""
    from edgeopt.programs.drafting import CachedScorer, Drafter, Verifier

    options = {"dtype": torch.float32, "device": torch.device("cpu"), "max_tokens": 16}
    model, prompt, counts, total = target(3), [0, 1, 2, 1], {}, 500
    draft, whole = (
        CachedScorer(model.drafts["small"].architecture, **options),
        CachedScorer(model.architecture, **options),
    )
    with torch.inference_mode():
        for seed in range(total):
            draft.reset()
            whole.reset()
            drafter, verifier = Drafter(draft, 1.0, seed), Verifier(whole, 1.0, seed)
            first = verifier.start(prompt)
            drafter.start(prompt)
            drafter.settle([first])
            guesses, guessed = drafter.guess(2)
            count, token = verifier.check(guesses, guessed)
            made = [first, *guesses[:count], token]
            if len(made) == 2:
                made.append(verifier.check([], torch.empty(0))[1])
            cell = tuple(made[:3])
            counts[cell] = counts.get(cell, 0) + 1
        chances = {}
        for cell in itertools.product(range(3), repeat=3):
            whole.reset()
            rows = torch.softmax(whole.score([*prompt, *cell[:2]], 3), -1)
            chances[cell] = float(torch.stack([rows[i, token] for i, token in enumerate(cell)]).prod())
    assert sum(chances.values()) == pytest.approx(1.0, rel=1e-5)
    assert chi_square(counts, chances, total) < 54.1  # 26 degrees of freedom, 0.1 %


def test_prompts_come_from_the_models_file_or_are_refused(tmp_path):
    from safetensors.torch import save_file

    from edgeopt.errors import InputError
    from edgeopt.profiles.problem import TextWorkload
    from edgeopt.programs.speculative import draw_prompt

    save_file({"prompts": torch.arange(12, dtype=torch.uint8).reshape(3, 4)}, tmp_path / "p.safetensors")
    model = target(prompts=str(tmp_path / "p.safetensors"))
    assert draw_prompt(model, TextWorkload(prompt_tokens=3, new_tokens=2), 4).tolist() == [[4, 5, 6]]
    with pytest.raises(InputError, match="have 4 tokens"):
        draw_prompt(model, TextWorkload(prompt_tokens=5, new_tokens=2), 0)


def test_a_cache_that_slides_is_refused():
    from edgeopt.errors import InputError
    from edgeopt.programs.drafting import CachedScorer

    architecture = target().architecture
    sliding = architecture.model_copy(
        update={"class_name": "MistralForCausalLM", "config": {**architecture.config, "sliding_window": 4}}
    )
    with pytest.raises(InputError, match="rolled back"):
        CachedScorer(sliding, dtype=torch.float32, device=torch.device("cpu"), max_tokens=8)
