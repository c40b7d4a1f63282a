"""Gates counted while a model generates: against the library's own outputs, and skewed where the weights say so."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from edgeopt.errors import InputError
from edgeopt.profiles.checks import check_model
from tests.edgeopt.expert_cases import architecture, mixture, write_skewed
from tests.edgeopt.factories import language_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from edgeopt.profiler.gates import measure_gates  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("family", ["MixtralForCausalLM", "Qwen2MoeForCausalLM"])
def test_counts_are_those_of_the_routers(family):
    from edgeopt.profiles.problem import TextWorkload
    from edgeopt.programs.language import build_model, model_config
    from edgeopt.programs.speculative import draw_prompt
    from edgeopt.programs.weights import RandomWeights, fill

    k = 3 if "Qwen2" in family else 2
    model = mixture(4, k, layers=2, family=family)
    found = measure_gates(model, prompts=3, prompt_tokens=7, new_tokens=1, seed=5)
    whole = build_model(model.architecture, model_config(model.architecture))
    fill(whole, RandomWeights(3), dtype=torch.float32)
    prompt = draw_prompt(model, TextWorkload(prompt_tokens=7, new_tokens=1, batch=3), 5)
    with torch.inference_mode():
        logits = whole(prompt, output_router_logits=True).router_logits
    for g in range(2):
        sets = [set(row) for row in torch.topk(logits[g], k).indices.tolist()]
        assert found.frequencies[g] == pytest.approx([sum(e in s for s in sets) / 21 for e in range(4)], abs=1e-6)
        both = [sum(set(pair) <= s for s in sets) / 21 for pair in combinations(range(4), 2)]
        assert found.pairs[g] == pytest.approx(both, abs=1e-6)
    assert list(check_model(model.model_copy(update={"gates": found}))) == []
    assert "random weights of seed 3 on 3 prompts of random tokens" in found.source


def test_a_skewed_checkpoint_is_measured_as_such(tmp_path):
    wide = architecture(layers=3, hidden_size=64)
    known = write_skewed(tmp_path / "skewed.safetensors", wide, strength=8.0)
    tops = []
    for each in (wide, known):
        model = mixture(4, 2, layers=3, architecture=each)
        found = measure_gates(model, prompts=8, prompt_tokens=16, new_tokens=8)
        tops.append(np.sort(np.array(found.frequencies), axis=1)[:, -2:].sum(axis=1))
    assert (tops[1] > 1.35).all()
    assert tops[1].mean() > tops[0].mean() + 0.1
    assert "with its checkpoint" in found.source


def test_a_model_without_experts_or_architecture_is_refused():
    with pytest.raises(InputError, match="measure gates of a mixture of experts"):
        measure_gates(language_model())
    with pytest.raises(InputError, match=r"model.architecture.*add `architecture:`"):
        measure_gates(mixture().model_copy(update={"architecture": None}))


def test_the_verb_writes_a_profile_with_its_gates(tmp_path):
    from typer.testing import CliRunner

    from edgeopt.cli import app

    run = CliRunner().invoke(app, ["profile", "model", "mixture", "--gates", "2", "--prompt-tokens", "4", "--json"])
    assert run.exit_code == 0, run.output
    gates = json.loads(run.output)["gates"]
    assert [round(sum(row), 3) for row in gates["frequencies"]] == [2.0, 2.0, 2.0]
    assert "4 tokens each and 32 more generated: 70 tokens" in gates["source"]
    refused = CliRunner().invoke(app, ["profile", "model", "mixture", "--gates", "2", "--on", "laptop-cpu"])
    assert refused.exit_code != 0
    assert "give one of the two" in f"{refused.output}{refused.exception}"
