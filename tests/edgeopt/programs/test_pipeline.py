"""A split language model generates the very tokens of the whole one."""

from __future__ import annotations

import pytest

from edgeopt import programs
from edgeopt.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cuts", [[6], [1, 6], [5, 6], [3, 6], [1, 3, 5, 6], [1, 2, 3, 4, 5, 6]])
def test_tokens_equal_generate(language_plan, run_plan, cuts, tied):
    plan = language_plan(cuts, batch=2, tie_word_embeddings=tied)
    result, expected = run_plan(plan), programs.reference(plan, seed=11)
    assert expected[0].shape == (2, 6)
    assert expected[0].unique().numel() > 3, "a model that repeats one token would hide errors of position"
    assert programs.compare(plan, result, expected) == {
        "equal": True, "kind": "tokens", "max_abs_diff": 0.0, "tolerance": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("Qwen2", {}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
        ("Qwen3", {"head_dim": 16}),
        ("Mistral", {"sliding_window": 4}),
        ("Mistral", {"sliding_window": None}),
        ("Mixtral", {"num_local_experts": 4}),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}),
    ],
)
def test_families(language_plan, run_plan, family, config):
    plan = language_plan([2, 4, 6], family=family, new=9, **config)
    assert programs.compare(plan, run_plan(plan), programs.reference(plan, seed=11))["equal"]


def test_every_stage_matters(language_plan, run_plan):
    plan, other = language_plan([3, 6]), language_plan([3, 6], rms_norm_eps=0.5)
    verdict = programs.compare(plan, run_plan(other), programs.reference(plan, seed=11))
    assert not verdict["equal"]
    assert verdict["max_abs_diff"] > 0


def test_second_request_starts_afresh(language_plan, run_plan):
    plan = language_plan([2, 6])
    assert torch.equal(run_plan(plan, repeat=2)[0], run_plan(plan)[0])
    assert not torch.equal(run_plan(plan, seed=12)[0], run_plan(plan)[0])


def test_bfloat16_and_one_token(language_plan, run_plan):
    plan = language_plan([2, 6], dtype="bfloat16", new=1)
    assert programs.compare(plan, run_plan(plan), programs.reference(plan, seed=11))["equal"]


def test_message_bytes_are_what_the_cost_model_counts(language_plan):
    from edgeopt.costs.language import LanguageCosts

    plan = language_plan([1, 3, 6], batch=2)
    program = programs.build(plan, [])
    costs = LanguageCosts(plan.problem.model, plan.problem.workload)
    for stage, cut in [(1, 1), (2, 3)]:
        specs = [spec for r in range(program.rounds) for spec in program.specs(stage, r)]
        assert _bytes(specs) == costs.cut_bytes[cut]
        assert len(specs) == costs.cut_messages[cut]
    assert _bytes(program.specs(0, 0)) == costs.cut_bytes[0]
    assert _bytes(program.specs(3, program.rounds - 1)) == costs.cut_bytes[6]
    assert _bytes([spec for r in range(1, program.rounds) for spec in program.specs(0, r)]) == costs.loop_bytes


def _bytes(specs):
    return sum(torch.empty(spec.shape, dtype=spec.dtype).nbytes for spec in specs)


def test_a_process_holds_only_its_own_layers(language_plan):
    def held(stages):
        program = programs.build(language_plan([1, 3, 6], tie_word_embeddings=True), stages)
        modules = [
            module
            for stage in stages
            for part in [program.part(stage)]
            for module in [part.embed, *part.layers, part.norm, part.head]
            if module is not None
        ]
        assert not any(p.is_meta for module in modules for p in module.parameters())
        return sum(p.numel() for module in modules for p in module.parameters())

    embedding, head = 199 * 32, 199 * 32 + 32
    layer = held([1]) // 2
    assert held([]) == 0
    assert held([0]) == embedding
    assert held([2]) == 2 * layer + head, "a tied head away from the embedding needs the matrix too"


def test_threads_of_the_reference_are_restored(language_plan):
    before = torch.get_num_threads()
    programs.reference(language_plan([3, 6], threads=[1, 2]), seed=1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"family": "GPT2"}, "architecture.class"),
        ({"num_hidden_layers": 5}, "model.layers"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_refusals(language_plan, change, field):
    with pytest.raises(InputError, match=field):
        programs.build(language_plan([3, 6], **change), [0])
