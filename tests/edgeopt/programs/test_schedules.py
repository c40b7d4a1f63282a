"""A run that is cut goes on to the bit, with what the solver remembers shipped; elsewhere it is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt import planner, programs
from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.solvers import SOLVERS, solver_of
from edgeopt.errors import InputError, NoPlanError
from edgeopt.profiles.model import Sampler
from edgeopt_solvers.chain import Solution, evaluate
from tests.edgeopt.factories import device, diffusion_model, image_problem

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.torch

STEPS = 6
FLUX = {"shift": 3.0, "use_dynamic_shifting": True}
SAMPLERS = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flux": ("FlowMatchEulerDiscreteScheduler", FLUX),
    "flux-terminal": ("FlowMatchEulerDiscreteScheduler", {**FLUX, "shift_terminal": 0.02}),
    "dpm-2m": ("DPMSolverMultistepScheduler", {}),
    "dpm-2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm-3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc-3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "unipc-flow": ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "pndm-prk": ("PNDMScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
}


def test_every_solver_of_the_table_is_tried():
    assert {name for name, _ in SAMPLERS.values()} == set(SOLVERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_cut_at_every_legal_place_at_once(diffusion_plan, run_plan, name):
    sampler, config = SAMPLERS[name]
    solver = solver_of(Sampler(class_name=sampler, config=config), STEPS)
    cuts = [done for done in range(1, solver.calls) if solver.refusal(done) is None] + [solver.calls]
    assert len(cuts) >= STEPS - 1
    plan = diffusion_plan(
        cuts, ["small"] * len(cuts), denoiser="dit", encoder=False, decoder=False, sampler=sampler,
        sampler_config=config, steps=STEPS, images=2,
    )  # fmt: skip
    result = run_plan(plan, together=True)
    assert result[0].isfinite().all()
    assert torch.equal(result[0], programs.reference(plan, seed=11)[0])
    program, costs = programs.build(plan, []), DiffusionCosts(plan.problem.model, plan.problem.workload)
    sent = [sum(spec.num_bytes for spec in program.specs(stage, 0)) for stage in range(1, len(cuts))]
    assert sent == costs.cut_bytes[cuts[:-1]].tolist()


@pytest.mark.parametrize("name", ["dpm-2m", "unipc", "lms", "pndm"])
def test_latents_alone_would_be_wrong(diffusion_plan, run_plan, name, monkeypatch):
    """The published pipelines' hand-over: the next stage begins without memory."""
    sampler, config = SAMPLERS[name]
    plan = diffusion_plan(
        [3, solver_of(Sampler(class_name=sampler, config=config), STEPS).calls], ["small"] * 2, denoiser="dit",
        encoder=False, decoder=False, sampler=sampler, sampler_config=config, steps=STEPS,
    )  # fmt: skip
    expected = programs.reference(plan, seed=11)[0]
    assert torch.equal(run_plan(plan, together=True)[0], expected)
    monkeypatch.setattr("edgeopt.programs.multi_stage.restore_state", lambda *_: None)
    assert float((run_plan(plan, together=True)[0] - expected).abs().max()) > 1e-5


# Heun and its like may be cut after an even number of calls (one step) only.


@pytest.mark.parametrize("name", ["heun", "kdpm2", "flow-heun"])
def test_two_call_solvers_are_refused_at_odd_places(diffusion_plan, name):
    sampler, _ = SAMPLERS[name]
    make = {"denoiser": "dit", "encoder": False, "decoder": False, "sampler": sampler, "steps": STEPS}
    for cut in range(1, 2 * STEPS - 1):
        plan = diffusion_plan([cut, 2 * STEPS - 1], ["small", "small"], **make)
        if cut % 2:
            with pytest.raises(InputError, match=f"call {cut} would be the second of a step"):
                programs.build(plan, [0])
        else:
            programs.build(plan, [])


@pytest.mark.parametrize(
    "sampler", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_the_planner_refuses_with_the_reason(sampler):
    model = diffusion_model(components=False).model_copy(update={"sampler": Sampler(class_name=sampler)})
    devices = [device("phone"), device("server")]
    pins = {"pin": {"step.2": "phone", "step.3": "server"}}
    why = (
        "EulerAncestralDiscreteScheduler remembers"
        if "Ancestral" in sampler
        else "call 3 would be the second of a step"
    )
    with pytest.raises(NoPlanError, match=why):
        planner.solve(image_problem(model=model, devices=devices, constraints=pins))
    free = planner.solve(image_problem(model=model, devices=devices, constraints={"pin": {"step.2": "phone"}}))
    broken = free.model_copy(update={"cuts": [3, free.cuts[-1]], "devices": [0, 1], "variants": [1, 1]})
    assert any(why in finding for finding in planner.verify(broken))


def test_calls_of_two_call_solvers_are_elements_of_the_plan():
    model = diffusion_model(components=False).model_copy(
        update={"sampler": Sampler(class_name="HeunDiscreteScheduler")}
    )
    plan = planner.solve(image_problem(model=model, devices=[device("one", gflops=10)]))
    assert plan.cuts[-1] == 19
    assert plan.latency_s == pytest.approx(19 * 0.1, rel=1e-6)


def test_what_the_solver_remembers_is_in_the_planned_bytes():
    from edgeopt.strategies import get_strategy

    model = diffusion_model(components=False)
    seconds = {}
    for name in ("ddim", "dpm-2m", "unipc"):
        sampler, config = SAMPLERS[name]
        problem = image_problem(model=model.model_copy(update={"sampler": Sampler(class_name=sampler, config=config)}))
        chain = get_strategy("multi_stage").build(problem)
        seconds[name] = evaluate(chain, Solution((4, 10), (0, 1), (1, 1))).terms["transfer_s"]
    # 10 kB each at 1 MB/s.
    assert seconds["dpm-2m"] - seconds["ddim"] == pytest.approx(0.01)
    assert seconds["unipc"] - seconds["ddim"] == pytest.approx(0.03)


# FLUX: schedules shifted by resolution, never truncated.


def _flux(steps, **changes):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(FLUX | changes)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(64 * 32))
    return scheduler


@pytest.mark.parametrize("changes", [{}, {"shift_terminal": 0.02}])
@pytest.mark.parametrize("start", [0, 3, 5])
def test_flux_schedules_are_those_of_the_full_run(changes, start):
    from edgeopt.programs.schedules import make_scheduler

    sampler = Sampler(class_name="FlowMatchEulerDiscreteScheduler", config=FLUX | changes)
    made, full = make_scheduler(sampler, STEPS, start=start, latent_shape=[16, 128, 64]), _flux(STEPS, **changes)
    assert torch.equal(made.timesteps, full.timesteps)
    assert torch.equal(made.sigmas, full.sigmas)
    assert made.begin_index == start
    other = make_scheduler(sampler, STEPS, start=start, latent_shape=[16, 64, 64])
    assert not torch.equal(other.sigmas, full.sigmas)


def test_truncated_and_stale_flux_schedules_would_be_wrong():
    """A truncated list of levels ends at noise 0, and a stale begin index steps from the first level."""
    full = _flux(STEPS)
    short = diffusers.FlowMatchEulerDiscreteScheduler.from_config({"shift": 1.0})
    short.set_timesteps(sigmas=full.sigmas[:4].tolist())
    assert short.sigmas[-1] == 0
    assert full.sigmas[4] > 0.4
    latent, velocity = torch.ones(1, 4), torch.full((1, 4), 0.5)
    moved = {}
    for begin in (3, 0):
        scheduler = _flux(STEPS)
        scheduler.set_begin_index(begin)
        moved[begin] = scheduler.step(velocity, scheduler.timesteps[3], latent).prev_sample
    assert float((moved[0] - moved[3]).abs().max()) > 0.01


def test_shifted_schedules_need_a_resolution():
    from edgeopt.programs.schedules import make_scheduler

    with pytest.raises(InputError, match="resolution"):
        make_scheduler(Sampler(class_name="FlowMatchEulerDiscreteScheduler", config=FLUX), STEPS)
    with pytest.raises(InputError, match="remembers earlier steps"):
        make_scheduler(Sampler(class_name="LMSDiscreteScheduler"), STEPS, num_stages=2)
