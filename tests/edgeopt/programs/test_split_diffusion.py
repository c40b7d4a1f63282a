"""A denoiser in pieces gives the very bits of the library's whole one, whatever crosses the cuts."""

from __future__ import annotations

import math

import pytest

from edgeopt import programs
from edgeopt.errors import InputError

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.torch


@pytest.fixture
def split_plan(diffusion_plan):
    """Return a maker of plans for one denoiser, cut before the blocks at ``cuts`` (text encoder and decoder alone)."""
    from edgeopt.profiler.architectures.diffusion import denoiser as derive

    def make(cuts, *, denoiser="unet", variant="small", encoder=True, decoder=True, threads=None, **options):
        whole = diffusion_plan([1], [variant], denoiser=denoiser, encoder=encoder, decoder=decoder, **options)
        model = whole.problem.model
        derived = derive(model.variants[variant].architecture, model.latent_shape, 7, model.dtype).variant
        model = model.model_copy(update={"variants": {variant: derived}})
        num_blocks = len(derived.blocks)
        first = 1 if encoder else 0
        ends = [first] * encoder + [first + cut % num_blocks for cut in cuts] + [first + num_blocks]
        ends += [ends[-1] + 1] * decoder
        variants = [None] * encoder + [variant] * (len(cuts) + 1) + [None] * decoder
        return plan_like(whole, model, ends, variants, threads)

    return make


def plan_like(plan, model, ends, variants, threads):
    from tests.edgeopt.programs.conftest import plan_of

    return plan_of("split_diffusion", model, plan.problem.workload, ends, variants, threads)


@pytest.mark.parametrize("denoiser", ["unet", "pixart"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_bitwise_between_text_and_image(split_plan, run_plan, denoiser, guidance):
    plan = split_plan([1, 2, -1], denoiser=denoiser, variant="large", guidance=guidance, images=2, steps=3)
    result, expected = run_plan(plan), programs.reference(plan, seed=11)
    assert result[0].shape == (2, 3, 16, 16)
    assert result[0].isfinite().all()
    assert programs.compare(plan, result, expected)["kind"] == "bitwise"


def test_every_cut_of_a_unet_with_skips(split_plan, run_plan):
    whole = split_plan([], steps=2, decoder=False)
    expected = programs.reference(whole, seed=11)
    for cut in range(1, len(whole.problem.model.variants["small"].blocks)):
        plan = split_plan([cut], steps=2, decoder=False)
        assert torch.equal(run_plan(plan, together=True)[0], expected[0]), cut


@pytest.mark.parametrize(
    "sampler",
    ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "HeunDiscreteScheduler",
     "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
     "KDPM2DiscreteScheduler"],
)  # fmt: skip
def test_any_solver_since_one_stage_steps_it(split_plan, run_plan, sampler):
    config = {"skip_prk_steps": True} if sampler == "PNDMScheduler" else {}
    plan = split_plan(
        [2], denoiser="dit", encoder=False, decoder=False, sampler=sampler, sampler_config=config, steps=4, guidance=2.0
    )
    result = run_plan(plan, repeat=2)
    assert programs.compare(plan, result, programs.reference(plan, seed=11))["kind"] == "bitwise"


@pytest.mark.parametrize("change", ["guidance", "seed", "weights"])
def test_everything_matters(split_plan, run_plan, change):
    plan = split_plan([2], guidance=3.0, decoder=False, steps=2)
    result = run_plan(plan)
    other = {
        "guidance": lambda: split_plan([2], guidance=2.0, decoder=False, steps=2),
        "weights": lambda: split_plan([2], guidance=3.0, decoder=False, steps=2, variant="large"),
    }.get(change, lambda: plan)()
    assert not programs.compare(plan, result, programs.reference(other, seed=12 if change == "seed" else 11))["equal"]


def test_a_stage_holds_its_own_weights_and_what_is_common(split_plan):
    plan = split_plan([3, 6], decoder=False)
    variant = plan.problem.model.variants["small"]
    for figure in ("flop", "traffic", "kernels"):
        assert sum(getattr(block, figure) for block in variant.blocks) == getattr(variant, figure)
    held = []
    for index in (1, 2, 3):
        program = programs.build(plan, [index])
        tensors = {id(t): t for t in program._pieces[index]._base if t is not None}
        held.append(sum(t.nbytes for t in tensors.values()))
        start, stop = program._span(index)
        stated = sum(block.weights for block in variant.blocks[start:stop])
        assert stated <= held[-1] <= stated + variant.common_weights
    assert held[1] < variant.weights / 2
    assert programs.build(plan, [])._pieces == {}


def test_planned_bytes_are_what_crosses(split_plan):
    from edgeopt.costs.split import SplitCosts

    plan = split_plan([3, 6], guidance=2.0, images=3, steps=4)
    costs = SplitCosts(plan.problem.model, plan.problem.workload)
    program = programs.build(plan, [])
    for stage, planned in enumerate(plan.stages):
        sent = [sum(spec.num_bytes for spec in program.specs(stage, r)) for r in range(program.rounds)]
        if stage == 0:
            assert sent[0] == costs.cut_bytes[0]
            assert sum(sent[1:]) == costs.loop_bytes
        else:
            assert sum(sent) == costs.cut_bytes[planned.start]
            assert len(sent) == costs.cut_messages[planned.start]
    assert sum(spec.num_bytes for spec in program.specs(len(plan.stages), 0)) == costs.cut_bytes[-1]


def test_profiles_of_another_architecture_are_refused(split_plan):
    plan = split_plan([3])
    variant = plan.problem.model.variants["small"]
    wrong = [block.model_copy(update={"output": 1.0} if i == 1 else {}) for i, block in enumerate(variant.blocks)]
    for blocks, why in ((wrong, "profile says 1 B"), (variant.blocks[:-1], "not those of the architecture")):
        model = plan.problem.model.model_copy(
            update={"variants": {"small": variant.model_copy(update={"blocks": blocks})}}
        )
        ends = [1, 4, 1 + len(blocks), 2 + len(blocks)]
        with pytest.raises(InputError, match=why):
            programs.build(plan_like(plan, model, ends, [None, "small", "small", None], None), [1])


def test_threads_differ_by_block(split_plan, run_plan):
    plan = split_plan([3, 6], threads=[1, 2, 1, 2, 1], steps=2)
    assert programs.compare(plan, run_plan(plan), programs.reference(plan, seed=11))["kind"] == "bitwise"


def test_elements_are_reported_in_order(split_plan):
    plan = split_plan([3], steps=2)
    program = programs.build(plan, range(len(plan.stages)))
    program.begin()
    message = program.request(3)
    for round_index in range(program.rounds):
        for stage in plan.stages:
            done = []
            program.on_element = done.append
            message = program.run(stage.index, round_index, message)
            assert done == list(range(stage.start, stage.stop))
    assert math.prod(message[0].shape) == 3 * 16 * 16
