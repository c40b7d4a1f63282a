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


def test_experts_and_unknown_formats_are_refused(language_plan):
    def stored(plan, name):
        stages = [stage.model_copy(update={"variant": name}) for stage in plan.stages]
        return plan.model_copy(update={"stages": stages})

    with pytest.raises(InputError, match="experts"):
        programs.build(stored(language_plan([3, 6], family="Mixtral", num_local_experts=4), "int8"), [0])
    with pytest.raises(InputError, match="int8 or int4"):
        programs.build(stored(language_plan([3, 6]), "int2"), [0])
