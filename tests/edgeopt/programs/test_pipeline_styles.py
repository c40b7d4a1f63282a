"""Tokens of one process whatever the style of model, greedy and drawn, in one to four stages, whole or in chunks."""

from __future__ import annotations

import pytest

from edgeopt import programs
from edgeopt.executor.messages import Handoff
from edgeopt.executor.packing import pack, unpack
from edgeopt.executor.recovery import resumed_plan

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

STYLES = {
    "Llama": {},
    "Qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "Mixtral": {"num_local_experts": 4, "sliding_window": None},
}
CUTS = ([6], [3, 6], [1, 4, 6], [1, 3, 5, 6])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("style", STYLES)
def test_one_to_four_stages_make_the_tokens_of_one_process(language_plan, run_plan, style, temperature, batch):
    options = {"family": style, "temperature": temperature, "batch": batch, **STYLES[style]}
    expected = programs.reference(language_plan(CUTS[0], **options), seed=11)
    assert expected[0].shape == (batch, 6)
    assert expected[0].unique().numel() > 2
    for cuts in CUTS:
        plan = language_plan(cuts, **options)
        verdict = programs.compare(plan, run_plan(plan, together=len(cuts) < 4), expected)
        assert (verdict["equal"], verdict["kind"]) == (True, "tokens"), cuts


def test_draws_depend_on_the_seed_and_on_the_temperature(language_plan, run_plan):
    plan = language_plan([2, 6], temperature=0.9, new=12)
    once = run_plan(plan)[0]
    assert torch.equal(run_plan(plan, repeat=2)[0], once), "a request begins with its own random numbers"
    greedy = language_plan([2, 6], new=12)
    assert not torch.equal(run_plan(greedy)[0], once)
    almost = language_plan([2, 6], temperature=1e-4, new=12)
    assert torch.equal(run_plan(almost)[0], run_plan(greedy)[0]), "hardly any temperature is none"


def test_draws_follow_the_probabilities():
    from edgeopt.programs.choosing import choose_token

    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    logits = 2.0 * probabilities.log()[None]
    count = 4000
    drawn = torch.cat([choose_token(logits, 2.0, seed=n % 7, position=n // 7) for n in range(count)]).flatten()
    seen, wanted = drawn.bincount(minlength=4), count * probabilities
    assert float(((seen - wanted) ** 2 / wanted).sum()) < 16.3, "chi-square of 3 degrees at 0.1 %"
    again = torch.cat([choose_token(logits, 2.0, seed=n % 7, position=n // 7) for n in range(50)]).flatten()
    assert torch.equal(again, drawn[:50])


def test_a_request_that_was_interrupted_draws_what_it_would_have_drawn(language_plan, run_plan):
    plan = language_plan([2, 6], temperature=0.9, batch=2, new=7)
    whole = run_plan(plan)[0]
    handoffs = [
        Handoff(request=0, purpose="loop", cut=6, round=n + 1, data=pack([whole[:, n : n + 1].contiguous()]))
        for n in range(3)
    ]
    rest = resumed_plan(plan, handoffs)
    handed = [unpack(handoff.data) for handoff in handoffs]
    program = programs.build(rest, range(2))
    program.begin()
    message = program.resume(11, handed)
    for round_index in range(program.rounds):
        for stage in range(2):
            message = program.run(stage, round_index, message)
    assert torch.equal(program.join(handed, message)[0], whole)


@pytest.mark.parametrize(("chunk", "temperature", "batch"), [(4, 0.0, 1), (1, 0.9, 2), (50, 0.9, 1)])
def test_chunks_of_the_prompt_make_the_tokens_of_the_whole(language_plan, run_plan, chunk, temperature, batch):
    expected = programs.reference(language_plan([6], temperature=temperature, batch=batch), seed=11)
    for cuts in CUTS:
        plan = language_plan(cuts, temperature=temperature, batch=batch, chunk=chunk)
        assert programs.build(plan, []).rounds == -(-9 // chunk) + 5
        assert programs.compare(plan, run_plan(plan, together=True), expected)["equal"]


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
        ("Qwen3", STYLES["Qwen3"]),
        ("Mistral", {"sliding_window": 4}),
        ("Mixtral", {"num_local_experts": 4}),
    ],
)
def test_chunks_in_other_families(language_plan, run_plan, family, config):
    plan = language_plan([2, 4, 6], family=family, chunk=2, new=7, **config)
    assert programs.compare(plan, run_plan(plan, repeat=2), programs.reference(plan, seed=11))["equal"]


def test_several_requests_in_chunks_do_not_get_into_each_others_way(language_plan):
    from edgeopt.executor.layout import Layout
    from edgeopt.executor.state import State
    from edgeopt.executor.stream import stream

    plan = language_plan([2, 4, 6], temperature=0.9, chunk=4, threads=[1] * 3)
    stages = [stage.model_copy(update={"device": "d0"}) for stage in plan.stages]
    plan = plan.model_copy(update={"stages": stages})
    program = programs.build(plan, range(3))
    requests = [program.request(seed) for seed in (11, 12, 13)]
    found = stream(program, Layout.of(plan), 0, None, State(), requests, 6, 3)
    results = [spans.result[0] for spans in found]
    for number, seed in enumerate((11, 12, 13)):
        expected = programs.reference(plan, seed)[0]
        assert torch.equal(results[number], expected)
        assert torch.equal(results[number + 3], expected)
    assert [len(spans.computes) for spans in found] == [3 * (3 + 5)] * 6
