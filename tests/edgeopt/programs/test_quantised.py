"""Weights in fewer bits: their error, their size, and the tokens of a split model with different bits per stage."""

from __future__ import annotations

import pytest

from edgeopt import programs
from edgeopt.errors import InputError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("dtype", "largest", "width"), [("int8", 127, 200), ("int4", 7, 200), ("int4", 7, 33)])
def test_weights_come_back_to_within_half_a_step(dtype, largest, width):
    from edgeopt.programs.quantised import GROUP, QuantisedLinear

    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, width, generator=generator) * torch.logspace(-2, 1, 5)[:, None]
    weight[2] = 0.0
    layer = QuantisedLinear(weight, None, dtype, torch.float32)
    back = layer.rows(0, 5)
    size = width if dtype == "int8" else GROUP
    for start in range(0, width, size):
        group = slice(start, start + size)
        # Half a step, and what a scale of 16 bits adds at the largest weight.
        step = weight[:, group].abs().amax(1) / largest
        assert ((back - weight)[:, group].abs() <= 0.51 * step[:, None] + 2e-4 * largest * step[:, None] + 1e-7).all()
    assert torch.equal(back[2], torch.zeros(width))
    x = torch.randn(3, width, generator=generator)
    assert torch.allclose(layer(x), x @ back.T, rtol=1e-5, atol=1e-5)


def test_few_rows_at_a_time_compute_the_same(monkeypatch):
    from edgeopt.programs import quantised

    generator = torch.Generator().manual_seed(1)
    layer = quantised.QuantisedLinear(torch.randn(10, 64, generator=generator), None, "int4", torch.float32)
    x = torch.randn(2, 3, 64, generator=generator)
    whole = layer(x)
    monkeypatch.setattr(quantised, "_AT_ONCE", 3 * 64)
    assert torch.allclose(layer(x), whole, atol=1e-6)


def test_stored_bytes_are_those_of_the_profile():
    from edgeopt.profiles import load_model
    from edgeopt.programs.language import LanguagePart

    model = load_model("text")
    block = model.layers[1]
    for dtype in ("int8", "int4"):
        part = LanguagePart(
            model.architecture, 1, 2, dtype=torch.float32, device=torch.device("cpu"), max_tokens=8, weights=dtype
        )
        held = [*part.layers[0].parameters(), *part.layers[0].buffers()]
        assert sum(tensor.nbytes for tensor in held) == block.weights_by_dtype[dtype]


@pytest.mark.parametrize(
    ("family", "config", "variants"),
    [
        ("Llama", {}, ["int4", None, "int8"]),
        ("Qwen2", {}, ["int8", "int4", "int4"]),
        ("Qwen3", {"head_dim": 16}, ["int8"] * 3),
    ],
)
def test_tokens_of_stages_with_their_own_formats(language_plan, run_plan, family, config, variants):
    plan = language_plan([2, 4, 6], family=family, new=9, **config)
    stages = [s.model_copy(update={"variant": name}) for s, name in zip(plan.stages, variants, strict=True)]
    quantised = plan.model_copy(update={"stages": stages})
    result, expected = run_plan(quantised), programs.reference(quantised, seed=11)
    assert programs.compare(quantised, result, expected)["equal"]
    logits = [_logits(each) for each in (plan, quantised)]
    assert not torch.equal(*logits), "the weights are other ones"


def _logits(plan):
    """Return what the last stage's head says after the prompt."""
    program, found = programs.build(plan, range(3)), []
    part = program.part(2)
    part.head.register_forward_hook(lambda module, inputs, output: found.append(output))
    message = program.request(11)
    for stage in range(3):
        message = program.run(stage, 0, message)
    return found[0]


def stored(plan, *names):
    stages = [s.model_copy(update={"variant": name}) for s, name in zip(plan.stages, names, strict=True)]
    return plan.model_copy(update={"stages": stages})


def test_a_mixture_in_stages_of_fewer_bits_makes_the_tokens_of_one_process(language_plan, run_plan):
    plan = stored(language_plan([3, 6], family="Mixtral", num_local_experts=4), "int8", "int4")
    result, expected = run_plan(plan), programs.reference(plan, seed=11)
    assert programs.compare(plan, result, expected)["equal"]


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_experts_compute_what_the_library_computes_with_their_weights(name, dtype):
    from edgeopt.profiles.model import Architecture
    from edgeopt.programs.language import build_model, model_config
    from edgeopt.programs.mixtures import expert_layers
    from edgeopt.programs.quantised import QuantisedExperts
    from edgeopt.programs.weights import RandomWeights
    from tests.edgeopt.expert_cases import architecture

    family = {"mixtral": "MixtralForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM"}[name]
    known = Architecture.model_validate(architecture(family, 1))
    whole = expert_layers(build_model(known, model_config(known)))[0]
    source, shapes = RandomWeights(3), {name: value.shape for name, value in whole.named_parameters()}
    held = QuantisedExperts(whole, range(4), lambda n, e: source.read(n, shapes[n], [e]), dtype, dtype=torch.float32)
    for n, layers in (("gate_up_proj", held.gate_up), ("down_proj", held.down)):
        back = torch.stack([layer.rows(0, shapes[n][1]) for layer in layers])
        assert not torch.equal(back, source.read(n, shapes[n]))
        setattr(whole, n, torch.nn.Parameter(back, requires_grad=False))
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(9, 16, generator=generator)
    chosen = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(9)])
    weights = torch.rand(9, 2, generator=generator)
    assert torch.allclose(held(states, chosen, weights), whole(states, chosen, weights), atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_mixtures_bytes_in_a_format_are_those_of_the_profile(dtype):
    from edgeopt.profiles import load_model
    from edgeopt.programs.language import LanguagePart

    model = load_model("mixture")
    block = model.layers[1]
    part = LanguagePart(
        model.architecture, 1, 2, dtype=torch.float32, device=torch.device("cpu"), max_tokens=8, weights=dtype
    )
    held = [*part.layers[0].parameters(), *part.layers[0].buffers()]
    assert sum(tensor.nbytes for tensor in held) == block.weights_by_dtype[dtype]
    experts = part.layers[0].mlp.experts
    assert sum(tensor.nbytes for tensor in experts.buffers()) == 8 * block.experts.weights_by_dtype[dtype]


def test_other_matrices_and_unknown_formats_are_refused(language_plan):
    from edgeopt.programs.quantised import fill_quantised
    from edgeopt.programs.weights import RandomWeights, meta_parameters

    with meta_parameters():
        layer = torch.nn.Conv1d(3, 4, 2)
    with pytest.raises(InputError, match="'weight' is no matrix of a linear layer or of experts"):
        fill_quantised(layer, RandomWeights(0), "int8", dtype=torch.float32)
    with pytest.raises(InputError, match="int8 or int4"):
        programs.build(stored(language_plan([3, 6]), "int2", "int2"), [0])
