"""A cascade of levels gives the very bits of one run in one process, wherever it is cut."""

from __future__ import annotations

import pytest

from edgeopt import programs
from edgeopt.errors import InputError
from edgeopt.profiles.model import Architecture, CascadedDiffusion, RunsQuality
from edgeopt.profiles.problem import CascadeWorkload
from tests.edgeopt.programs.conftest import SOURCE, TEXT_TOKENS, TEXT_WIDTH, plan_of

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

COST = {"weights": 1e5, "flop": 1e6, "activations": 1e4}
EXACT = ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"]
# Level 0 has elements 0 to 5, level 1 elements 6 to 9 (after the text encoder, where there is one).
WHOLE = ([6, 10], ["big@6", "up@4"])
SPLIT = ([2, 5, 6, 7, 10], ["big@6", "little@6", "big@6", "up@4", "upper@4"])


def _denoiser(kind, layers, channels, side):
    if kind == "dit":
        config = {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": channels, "out_channels": 1,
            "num_layers": layers, "sample_size": side, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 1,
        }  # fmt: skip
        return Architecture(library="diffusers", class_name="DiTTransformer2DModel", config=config, seed=layers)
    config = {
        "sample_size": side, "in_channels": channels, "out_channels": 1, "block_out_channels": [8, 8 * layers],
        "layers_per_block": 1, "norm_num_groups": 4, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
    }  # fmt: skip
    return Architecture(library="diffusers", class_name="UNet2DConditionModel", config=config, seed=layers)


def cascade(kind="dit", sampler="DDIMScheduler", channels=(1, 2)):
    """Return two levels, 4 x 4 and 8 x 8 pixels, of two denoisers each with random weights."""
    clip = {
        "vocab_size": 99, "hidden_size": TEXT_WIDTH, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "max_position_embeddings": TEXT_TOKENS, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    encoder = Architecture(library="transformers", class_name="CLIPTextModel", config=clip, seed=1)
    conditioning = 8.0 if kind == "dit" else 4.0 * TEXT_TOKENS * TEXT_WIDTH
    levels = []
    for k, (side, names) in enumerate([(4, ("big", "little")), (8, ("up", "upper"))]):
        level = {
            "name": f"{side}x{side}",
            "sampler": {"class": sampler},
            "latent": 4.0 * side**2,
            "latent_shape": [1, side, side],
            "augmentation": 0.3 if k else None,
            "variants": {
                name: {"architecture": _denoiser(kind, i + 1, channels[k], side), **COST}
                for i, name in enumerate(names)
            },
        }
        levels.append(level)
    return CascadedDiffusion.model_validate(
        {
            "name": "tiny-cascade",
            "source": SOURCE,
            "family": "cascaded_diffusion",
            "dtype": "float32",
            "prompt": 8.0 if kind == "dit" else 8.0 * TEXT_TOKENS,
            "conditioning": conditioning,
            "text_encoder": None if kind == "dit" else {"architecture": encoder, "output": conditioning, **COST},
            "levels": levels,
        }
    )


def cascade_plan(cuts, variants, *, steps=(6, 4), guidance=1.0, images=2, threads=None, model=None):
    workload = CascadeWorkload(steps=list(steps), images=images, guidance=guidance, seed=5)
    return plan_of("hierarchical", model or cascade(), workload, cuts, variants, threads)


@pytest.mark.parametrize("sampler", EXACT)
@pytest.mark.parametrize(("cuts", "variants"), [WHOLE, SPLIT])
def test_bitwise(run_plan, sampler, cuts, variants):
    plan = cascade_plan(cuts, variants, model=cascade(sampler=sampler))
    result, expected = run_plan(plan, repeat=2), programs.reference(plan, seed=11)
    assert result[0].shape == (2, 1, 8, 8)
    assert result[0].isfinite().all()
    assert programs.compare(plan, result, expected)["kind"] == "bitwise"


@pytest.mark.parametrize("cut", range(1, 10))
def test_every_cut_is_legal(run_plan, cut):
    whole = programs.reference(cascade_plan(*WHOLE), seed=11)
    cuts = sorted({cut, 6, 10})
    plan = cascade_plan(cuts, ["big@6" if stop <= 6 else "up@4" for stop in cuts])
    assert torch.equal(run_plan(plan)[0], whole[0])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_text_encoder_and_guidance(run_plan, guidance):
    cuts, variants = [1, 4, 7, 9, 11], [None, "big@6", "little@6", "up@4", "up@4"]
    plan = cascade_plan(cuts, variants, guidance=guidance, model=cascade("unet"))
    verdict = programs.compare(plan, run_plan(plan), programs.reference(plan, seed=11))
    assert (verdict["equal"], verdict["kind"]) == (True, "bitwise")


def test_a_level_may_take_fewer_steps_than_it_has_elements(run_plan):
    model = cascade().model_copy(
        update={"quality": _runs([(["big", "up"], [6, 4]), (["big", "up"], [3, 2])])}
    )  # fmt: skip
    cuts, load = [2, 5, 6, 7, 9, 10], {"model": model, "steps": (6, 4)}
    plan = cascade_plan(cuts, ["big@3"] * 3 + ["up@2"] * 3, **load)
    free = plan.problem.workload.model_copy(update={"steps": None})
    plan = plan.model_copy(update={"problem": plan.problem.model_copy(update={"workload": free})})
    result = run_plan(plan)
    assert programs.compare(plan, result, programs.reference(plan, seed=11))["kind"] == "bitwise"
    short = cascade_plan([3, 5], ["big@3", "up@2"], steps=(3, 2))
    assert torch.equal(result[0], programs.reference(short, seed=11)[0])
    assert not torch.equal(result[0], programs.reference(cascade_plan(*WHOLE), seed=11)[0])


def _runs(runs):
    entries = [{"variants": names, "steps": steps, "quality": 1.0} for names, steps in runs]
    return RunsQuality.model_validate({"form": "runs", "metric": "m", "runs": entries, "source": SOURCE})


@pytest.mark.parametrize("change", ["variant", "guidance", "seed", "augmentation", "steps", "noise"])
def test_everything_matters(change):
    plan = cascade_plan(*WHOLE, guidance=2.0)
    before = programs.reference(plan, seed=11)
    model, steps, guidance, seed, (cuts, variants) = cascade(), (6, 4), 2.0, 11, WHOLE
    if change == "variant":
        variants = ["little@6", "up@4"]
    elif change == "guidance":
        guidance = 1.0
    elif change == "seed":
        seed = 12
    elif change == "augmentation":
        upper = model.levels[1].model_copy(update={"augmentation": 0.1})
        model = model.model_copy(update={"levels": [model.levels[0], upper]})
    elif change == "steps":
        cuts, variants, steps = [6, 9], ["big@6", "up@3"], (6, 3)
    other = cascade_plan(cuts, variants, steps=steps, guidance=guidance, model=model)
    if change == "noise":
        load = other.problem.workload.model_copy(update={"seed": 6})
        other = other.model_copy(update={"problem": other.problem.model_copy(update={"workload": load})})
    assert not torch.equal(before[0], programs.reference(other, seed=seed)[0])


def test_a_process_holds_only_its_own_denoisers():
    plan = cascade_plan(*SPLIT)
    assert list(programs.build(plan, [0, 2])._modules) == ["big"]
    assert list(programs.build(plan, [3, 4])._modules) == ["up", "upper"]
    assert programs.build(plan, [])._modules == {}


def test_message_bytes_are_what_the_cost_model_counts():
    from edgeopt.costs.cascade import CascadeCosts

    for kind, encoder in (("dit", 0), ("unet", 1)):
        cuts = [*range(1, 11 + encoder)]
        variants = [None] * encoder + ["big@6"] * 6 + ["up@4"] * 4
        plan = cascade_plan(cuts, variants, images=3, guidance=2.0, model=cascade(kind))
        program = programs.build(plan, [])
        costs = CascadeCosts(plan.problem.model, plan.problem.workload)
        for stage, cut in enumerate([0, *cuts]):
            sent = sum(torch.empty(spec.shape, dtype=spec.dtype).nbytes for spec in program.specs(stage, 0))
            assert sent == costs.cut_bytes[cut], (kind, cut)


@pytest.mark.parametrize(
    ("cuts", "variants", "why"),
    [
        ([6, 10], ["big", "up@4"], "no denoiser of 'tiny-cascade' with its steps"),
        ([6, 10], ["big@6", "huge@4"], "no denoiser of 'tiny-cascade' with its steps"),
        ([6, 10], ["big@0", "up@4"], "no denoiser of 'tiny-cascade' with its steps"),
        ([7, 10], ["big@6", "up@4"], "not inside level '4x4'"),
        ([3, 6, 10], ["big@6", "big@5", "up@4"], "continues a run of 6 steps"),
    ],
)
def test_plans_that_make_no_sense(cuts, variants, why):
    with pytest.raises(InputError, match=why):
        programs.build(cascade_plan(cuts, variants), [0])


def test_models_that_do_not_fit_together():
    with pytest.raises(InputError, match="takes 1 channels, level '8x8' shows 2") as caught:
        programs.build(cascade_plan(*WHOLE, model=cascade(channels=(1, 1))), [])
    assert len(caught.value.findings) == 2
    model = cascade()
    upper = model.levels[1].model_copy(update={"latent": 1.0})
    with pytest.raises(InputError, match="the tensor"):
        programs.build(cascade_plan(*WHOLE, model=model.model_copy(update={"levels": [model.levels[0], upper]})), [])


def test_solvers_with_memory_run_a_level_whole_and_are_refused_in_parts(run_plan):
    model = cascade(sampler="DPMSolverMultistepScheduler")
    plan = cascade_plan(*WHOLE, model=model)
    assert programs.compare(plan, run_plan(plan), programs.reference(plan, 11))["kind"] == "bitwise"
    with pytest.raises(InputError, match="remembers earlier steps"):
        programs.build(cascade_plan(*SPLIT, model=model), [])
