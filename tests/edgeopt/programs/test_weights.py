"""Weights by key: from files, or drawn by name."""

from __future__ import annotations

import json

import pytest

from edgeopt import programs
from edgeopt.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.torch


@pytest.fixture
def whole(language_plan):
    """A whole model with the library's own initial weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**language_plan([6]).problem.model.architecture.config)
    config.initializer_range = 0.5
    return transformers.LlamaForCausalLM(config).eval()


def generate(model, plan):
    model.generation_config.eos_token_id = None
    prompt = programs.build(plan, []).request(11)[0]
    return model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)[:, prompt.shape[1] :]


def test_stages_read_a_saved_model(language_plan, run_plan, whole, tmp_path):
    whole.save_pretrained(tmp_path)
    plan = language_plan([1, 3, 6], checkpoint=str(tmp_path))
    assert torch.equal(run_plan(plan)[0], generate(whole, plan))
    assert torch.equal(programs.reference(plan, 11)[0], generate(whole, plan))


def test_stages_read_an_indexed_checkpoint_and_only_their_files(language_plan, run_plan, whole, tmp_path):
    whole.save_pretrained(tmp_path, max_shard_size="30KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    plan = language_plan([2, 6], checkpoint=str(tmp_path))
    assert torch.equal(run_plan(plan)[0], generate(whole, plan))
    last = index["weight_map"]["model.layers.3.mlp.up_proj.weight"]
    (tmp_path / last).unlink()
    programs.build(plan, [0])
    with pytest.raises(InputError, match=last):
        programs.build(plan, [1])


def test_missing_key_is_named(language_plan, whole, tmp_path):
    state = {key: value for key, value in whole.state_dict().items() if key != "model.layers.2.mlp.up_proj.weight"}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    plan = language_plan([2, 6], checkpoint=str(tmp_path / "model.safetensors"))
    programs.build(plan, [0])
    with pytest.raises(InputError, match=r"has no 'model\.layers\.2\.mlp\.up_proj\.weight'"):
        programs.build(plan, [1])


def test_wrong_shape_is_named(language_plan, whole, tmp_path):
    state = dict(whole.state_dict())
    state["model.norm.weight"] = torch.zeros(31)
    safetensors.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"'model\.norm\.weight'.*\(31,\).*\(32,\)"):
        programs.build(language_plan([2, 6], checkpoint=str(tmp_path)), [1])


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_unreadable_checkpoint(language_plan, tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="safetensors"):
        programs.build(language_plan([6], checkpoint=str(tmp_path)), [0])


def test_random_weights_depend_on_name_and_seed_alone():
    from edgeopt.programs.weights import RandomWeights

    shape = torch.Size([64, 32])
    first = RandomWeights(1).read("model.layers.0.a.weight", shape)
    source = RandomWeights(1)
    source.read("something.else", shape)
    assert torch.equal(source.read("model.layers.0.a.weight", shape), first)
    assert not torch.equal(RandomWeights(2).read("model.layers.0.a.weight", shape), first)
    assert not torch.equal(RandomWeights(1).read("model.layers.1.a.weight", shape), first)
    assert first.std().item() == pytest.approx(32**-0.5, rel=0.1)
