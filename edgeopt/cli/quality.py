"""The verbs that sample: profile quality, quality."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.common import Json, Output, PlanFile, existing, hand_over, print_json, progress_line, writable

if TYPE_CHECKING:
    from edgeopt.profiles.model import CascadedDiffusion, Diffusion

__all__ = ["Form", "profile_quality", "quality"]


class Form(StrEnum):
    """How a profile of one level carries quality."""

    additive = "additive"
    table = "table"
    whole = "whole"


Samples = Annotated[int | None, typer.Option(help="Images per plan; default: as many as are held out.")]


def profile_quality(
    family: Annotated[str, typer.Argument(help="A trained family or cascade by name or file, such as digits.")],
    output: Output = None,
    form: Annotated[Form, typer.Option(help="Losses per step, a table of two variants, or whole runs.")] = (
        Form.additive
    ),
    first: Annotated[str | None, typer.Option(help="For a table: the variant of the first steps.")] = None,
    second: Annotated[str | None, typer.Option(help="For a table: the variant of the other steps.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps of a run.", min=2)] = 25,
    level_steps: Annotated[
        list[str] | None,
        typer.Option(metavar="N,N,...", help="For a cascade: numbers of steps to measure; once per level."),
    ] = None,
    guidance: Annotated[float, typer.Option(help="Above 1: classifier-free guidance.")] = 1.0,
    samples: Samples = None,
    cuts: Annotated[int, typer.Option(help="Hand-over points sampled per pair of variants and order.")] = 4,
    checks: Annotated[int, typer.Option(help="Random plans that tell the error of the sum over steps.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the noise, shared by all plans.")] = 0,
    json: Json = False,
) -> None:
    """Sample a trained family of denoisers, and write its profile with the quality that was measured."""
    from edgeopt.errors import Finding, InputError
    from edgeopt.profiler.quality import profile_cascade
    from edgeopt.profiler.quality import profile_quality as measure
    from edgeopt.profiles import load_model
    from edgeopt.profiles.checkpoints import with_relative_checkpoints
    from edgeopt.profiles.model import CascadedDiffusion, CausalLM

    writable(output)
    model = load_model(family)
    if isinstance(model, CausalLM):
        raise InputError(Finding("FAMILY", f"'{model.name}' makes no images", "give a family of denoisers"))
    if level_steps and not isinstance(model, CascadedDiffusion):
        raise InputError(Finding("--level-steps", f"'{model.name}' has one level", "use --steps"))
    measured: Diffusion | CascadedDiffusion
    with progress_line(json) as progress:
        if isinstance(model, CascadedDiffusion):
            counts = _level_steps(model, level_steps)
            measured = profile_cascade(
                model, counts, guidance=guidance, samples=samples, seed=seed, progress=progress
            )  # fmt: skip
        else:
            measured = measure(
                model, form=form.value, first=first, second=second, steps=steps, guidance=guidance, samples=samples,
                cuts=cuts, checks=checks, seed=seed, progress=progress,
            )  # fmt: skip
    hand_over(measured if output is None else with_relative_checkpoints(measured, output.parent), output, json)


def _level_steps(model: CascadedDiffusion, given: list[str] | None) -> list[list[int]]:
    """Numbers of steps for each level: those that are given, or those that the profile holds already."""
    from edgeopt.errors import Finding, InputError

    if given is None and model.quality is not None:
        return [sorted({run.steps[k] for run in model.quality.runs}) for k in range(len(model.levels))]
    example = " ".join("--level-steps 10,20" for _ in model.levels)
    if given is None:
        raise InputError(Finding("--level-steps", f"is missing, and '{model.name}' holds none", f"write {example}"))
    counts = [text.split(",") for text in given]
    if len(counts) != len(model.levels) or not all(part.isdecimal() and int(part) for one in counts for part in one):
        message = f"{' and '.join(given)} for {len(model.levels)} levels"
        raise InputError(Finding("--level-steps", message, f"write one list per level: {example}"))
    return [[int(part) for part in one] for one in counts]


def quality(
    plan: PlanFile,
    samples: Samples = None,
    seed: Annotated[int, typer.Option(help="Of the noise; profiles are measured with 0.")] = 0,
    json: Json = False,
) -> None:
    """Sample a plan's run and show the quality it was chosen for beside the measured one."""
    from edgeopt.profiler.quality import sample_plan
    from edgeopt.profiles import load_plan
    from edgeopt.report.samples import quality_text

    chosen = load_plan(existing(plan))
    with progress_line(json) as progress:
        progress("sampling")
        found = sample_plan(chosen, samples=samples, seed=seed).document()
    if json:
        print_json(found)
    else:
        print(quality_text(found))
