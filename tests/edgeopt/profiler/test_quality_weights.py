"""What fewer bits lose, measured anew on a part of the text, is what the profile of the trained model says."""

from __future__ import annotations

import pytest

from edgeopt.errors import InputError
from edgeopt.profiles import load_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


def test_losses_add_up_and_are_those_of_the_profile():
    from safetensors.torch import load_file

    from edgeopt.profiler.quality.weights import measure_weights

    model = load_model("text")
    known = model.quality
    text = load_file(model.prompts)["prompts"][:80, :64].long()
    found = measure_weights(model, text, "a part of the text", formats=["int4"])
    assert (found.metric, list(found.loss)) == (known.metric, ["int4"])
    assert found.loss["int4"][0] == found.loss["int4"][-1] == 0.0, "embedding and head stay as they are"
    assert found.loss["int4"] == pytest.approx(known.loss["int4"], rel=0.3)
    assert found.whole["int4"] == pytest.approx(sum(found.loss["int4"]), rel=0.1)
    assert known.whole["int4"] <= sum(known.loss["int4"]) * (1 + known.margin) * 1.0001
    assert known.whole["int8"] <= sum(known.loss["int8"]) * (1 + known.margin) * 1.0001
    assert 50 * known.whole["int8"] < known.whole["int4"], "four bits fewer: steps 18 times as wide, squared"


def test_random_weights_are_not_measured():
    from edgeopt.profiler.quality.weights import measure_weights

    with pytest.raises(InputError, match="checkpoint"):
        measure_weights(load_model("demo-llm"), torch.zeros(1, 4, dtype=torch.int64), "nothing")
