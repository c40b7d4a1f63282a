"""Tables for one model on one device profile, and the clocks that make them."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.costs.language import LanguageCosts
from edgeopt.errors import InputError
from edgeopt.profiler import profile_model
from edgeopt.profiler.architectures import derive_model
from edgeopt.profiler.device import slowed
from edgeopt.profiler.timings import Measuring
from edgeopt.profiles.device import Runtime, Timing
from edgeopt.profiles.problem import ImageWorkload, TextWorkload
from tests.edgeopt.factories import device

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.processes]

LOADS = [TextWorkload(prompt_tokens=prompt, new_tokens=3, batch=batch) for batch in (1, 3) for prompt in (4, 8)]


def test_every_batch_and_context_is_in_the_tables(language_model):
    here = device("here", runtime={"threads": 1})
    timed = profile_model(here, [language_model] * 4, LOADS, repeats=1, processes=1, command="a test")
    assert here.timings == []
    assert {(row.batch, row.tokens) for row in timed.timings if row.phase == "prefill"} == {
        (1, 4), (1, 8), (3, 4), (3, 8),
    }  # fmt: skip
    assert all("a test" in row.source and "1 thread, cpu" in row.source for row in timed.timings)
    asked = LanguageCosts(language_model, TextWorkload(prompt_tokens=6, new_tokens=2, batch=2))
    (prefill_s, known), (decode_s, all_known) = asked.prefill_s(timed), asked.decode_s(timed)
    assert known
    assert all_known, "6 cached tokens lie between the contexts of both prompts, batch 2 between both batches"
    assert np.isfinite(prefill_s).all()
    assert (decode_s > 0).all()


def test_measuring_again_replaces_the_rows_of_the_models_own_dtype(language_model):
    here, model = device("here", runtime={"threads": 1}), language_model.model_copy(update={"dtype": "bfloat16"})
    once = profile_model(here, [model], LOADS[:1], repeats=1, processes=1, command="first")
    twice = profile_model(once, [model], LOADS[:1], repeats=1, processes=1, command="second")
    assert {row.dtype for row in twice.timings} == {"bfloat16"}
    assert len(once.timings) == len(twice.timings)
    assert all("second" in row.source for row in twice.timings)


def test_a_quota_divides_the_times(language_model, monkeypatch):
    rows = [
        {"model": "toy-lm", "phase": "decode", "dtype": "float32", "batch": 1, "context": 9, "unit": "ms",
         "elements": [1.0, 2.0], "repeats": 3, "source": "a test"}
    ]  # fmt: skip
    told = {}

    def timed(*_, runtime, **__):
        told["runtime"] = runtime
        return [Timing.model_validate(row) for row in rows], runtime.model_copy(update={"yardstick": 3e-5})

    monkeypatch.setattr("edgeopt.profiler.device.profile_models", timed)
    quarter = device("here", gflops=100, runtime={"threads": 1, "cpu_quota": 0.25})
    (row,) = profile_model(quarter, [language_model], LOADS[:1]).timings
    assert row.elements == [4.0, 8.0]
    assert "quota of 0.25" in row.source
    whole = profile_model(device("here", gflops=100, runtime={"threads": 1}), [language_model], LOADS[:1])
    assert whole.timings[0].elements == [1.0, 2.0]
    half = slowed(whole, 0.5, "half")
    assert (half.name, half.runtime.cpu_quota, half.timings[0].elements) == ("half", 0.5, [2.0, 4.0])
    assert half.compute["float32"] == 0.5 * whole.compute["float32"]
    assert half.memory_bandwidth == 0.5 * whole.memory_bandwidth
    assert half.launch_overhead == 2 * whole.launch_overhead
    assert slowed(half, 0.5, "quarter").runtime.cpu_quota == 0.25


def test_a_model_that_does_not_fit_is_refused(language_model):
    huge = [layer.model_copy(update={"weights": 1e15}) for layer in language_model.layers]
    with pytest.raises(InputError, match="GiB are available"):
        profile_model(device("here"), [language_model.model_copy(update={"layers": huge})], LOADS[:1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_accelerator_is_the_users_error(language_model):
    here = device("here", runtime={"threads": 1, "accelerator": "cuda"})
    with pytest.raises(InputError, match="cuda"):
        profile_model(here, [language_model], LOADS[:1], repeats=1, processes=1)


def test_tables_of_a_diffusion_model_hold_every_batch_once(diffusion_model):
    """Decoder rows come once for each batch, denoiser rows for each batch and denoiser."""
    loads = [ImageWorkload(steps=2, images=images) for images in (1, 2)]
    timed = profile_model(device("here", runtime={"threads": 1}), [diffusion_model] * 2, loads, repeats=1, processes=1)
    rows = sorted((row.phase, row.variant or "", row.batch) for row in timed.timings)
    assert rows == [("decoder", "", 1), ("decoder", "", 2)] + [
        ("step", name, batch) for name in ("large", "small") for batch in (1, 2)
    ]


def test_whole_rounds_hold_one_value(language_model):
    from edgeopt.profiler.jobs import ElementAnswer
    from edgeopt.profiler.processes import run_jobs

    measuring = Measuring(language_model, LOADS[:1], Runtime(threads=1))
    measuring.add(run_jobs([measuring.job(2, whole=True)], ElementAnswer, 120.0)[0])
    assert np.array(measuring.samples[0][0].elements_s).shape == (2, 3, 1)
    (rounds_s,) = measuring.rounds_s()
    assert rounds_s.shape == (3,)
    assert (rounds_s > 0).all()


def test_the_launch_of_a_block_is_counted_as_model_profiles_do(language_model):
    """The block by which launches are measured has about the operations of a real one, counted alike."""
    from edgeopt.profiler.architectures.trace import Trace
    from edgeopt.profiler.machine import _Block, _Kernels

    block, x = _Block(16, 2).eval(), torch.randn(1, 1, 16)
    cached, turn = torch.randn(1, 2, 8, 8), torch.randn(8)
    with torch.inference_mode(), _Kernels() as kernels:
        block(x, cached, turn)
    on_meta = _Block(16, 2).to("meta").eval()
    trace = Trace(on_meta)
    with trace.running():
        on_meta(*(tensor.to("meta") for tensor in (x, cached, turn)))
    real = derive_model(
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 256,
            "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        },
        name="tiny", source="a test",
    )  # fmt: skip
    assert kernels.number == pytest.approx(trace.num_kernels, abs=3)
    assert kernels.number == pytest.approx(real.layers[1].kernels, rel=0.35)


def test_tables_of_a_cascade_hold_every_denoiser_of_every_level_once():
    from edgeopt.profiler.jobs import ElementAnswer, ElementSamples
    from edgeopt.profiles import load_model
    from edgeopt.profiles.problem import CascadeWorkload

    model = load_model("digits-levels")
    each = Measuring(model, [CascadeWorkload(steps=[9, 2], images=3)], Runtime(threads=1))
    plans = each.job(1).plans
    # Three plans, as the first level has three denoisers; a level's steps are measured six times at most.
    assert [[stage.variant for stage in plan.stages] for plan in plans] == [
        ["large@6", "enlarge-large@2"], ["medium@6", "enlarge-small@2"], ["small@6", "enlarge-large@2"],
    ]  # fmt: skip
    samples = [
        ElementSamples(elements_s=[[[k + 1.0] * 6 + [10.0 + k] * 2]] * 2, requests_s=[30.0] * 2, waited_s=[0.0] * 2)
        for k in range(3)
    ]
    each.add(ElementAnswer(plans=samples))
    rows = {row.variant: (row.phase, row.batch, row.elements) for row in each.timings("made for a test")}
    assert rows == {
        "large": ("step", 3, [1e3]), "medium": ("step", 3, [2e3]), "small": ("step", 3, [3e3]),
        "enlarge-large": ("step", 3, [10e3]), "enlarge-small": ("step", 3, [11e3]),
    }  # fmt: skip
