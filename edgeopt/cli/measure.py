"""The verbs that measure or derive: profile device, profile model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.common import Json, Output, duration, hand_over, progress_line, writable

if TYPE_CHECKING:
    from edgeopt.profiles.model import Model
    from edgeopt.profiles.problem import Workload

__all__ = ["profile_device", "profile_model"]


def profile_device(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the profile.")],
    output: Output = None,
    threads: Annotated[int | None, typer.Option(help="Threads the device may use; default: all cores.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Number format to rate; repeatable. Default float32.")] = None,
    accelerator: Annotated[str, typer.Option(help="cpu, or cuda: this machine's first CUDA device.")] = "cpu",
    model: Annotated[list[str] | None, typer.Option(help="Model to time element by element; repeatable.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="For language models.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="For language models.")] = 32,
    batch: Annotated[int, typer.Option(help="Sequences or images at once.")] = 1,
    steps: Annotated[int, typer.Option(help="For diffusion models.")] = 4,
    guidance: Annotated[float, typer.Option(help="For diffusion models; above 1 doubles the batch.")] = 1.0,
    repeats: Annotated[int, typer.Option(help="Requests timed per process and model.")] = 3,
    processes: Annotated[int, typer.Option(help="Fresh processes to time in.")] = 2,
    patches: Annotated[
        bool, typer.Option("--patches", help="Time denoisers by slabs, too; takes four times as long.")
    ] = False,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="For each process.")] = "600 s",
    json: Json = False,
) -> None:
    """Measure what this machine, used with some threads, computes and moves per second."""
    from edgeopt.profiler import profile_device as measure
    from edgeopt.profiles import load_model
    from edgeopt.profiles.problem import TextWorkload

    writable(output)
    timeout_s = duration("--timeout", timeout)
    models = [load_model(ref) for ref in model or []]
    text = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch": batch}
    loads = [
        TextWorkload(**text) if loaded.family == "causal_lm" else _images(loaded, steps, batch, guidance)
        for loaded in models
    ]
    with progress_line(json) as progress:
        device = measure(
            name, threads=threads, dtypes=tuple(dtype or ["float32"]), accelerator=accelerator,
            models=models, workloads=loads, repeats=repeats,
            processes=processes, timeout_s=timeout_s, command=context.obj, progress=progress, patches=patches,
        )  # fmt: skip
    hand_over(device, output, json)


def profile_model(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="A published model's name, a config.json, or a pipeline's folder.")],
    output: Output = None,
    name: Annotated[str | None, typer.Option(help="Name of the profile; default: after the configuration.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the configuration comes from.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Number format of weights and activations.")] = None,
    weights: Annotated[str | None, typer.Option(help="int8 or int4: how the blocks' matrices are stored.")] = None,
    on: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="Run it here as this device does; write the device with tables."),
    ] = None,
    prompt_tokens: Annotated[
        list[int] | None, typer.Option(help="With --on (repeatable) or --gates. Default 64.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="With --on, for language models, or --gates.")] = 32,
    batch: Annotated[list[int] | None, typer.Option(help="With --on: sequences or images; repeatable.")] = None,
    steps: Annotated[int, typer.Option(help="With --on, for diffusion models.")] = 4,
    guidance: Annotated[float, typer.Option(help="With --on; above 1 doubles a denoiser's batch.")] = 1.0,
    repeats: Annotated[int, typer.Option(help="With --on: requests timed per process.")] = 3,
    processes: Annotated[int, typer.Option(help="With --on: fresh processes to time in.")] = 2,
    patches: Annotated[bool, typer.Option("--patches", help="With --on: time denoisers by slabs, too.")] = False,
    gates: Annotated[
        int | None, typer.Option(metavar="PROMPTS", help="Count here how often a mixture's experts are chosen.", min=1)
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="With --on, for each process.")] = "600 s",
    json: Json = False,
) -> None:
    """Derive a model's FLOPs, bytes and cuts from its architecture, without weights; or, --on, time it here."""
    from edgeopt.errors import Finding, InputError
    from edgeopt.profiles import load_device, load_model
    from edgeopt.profiles.library import is_path, known_names
    from edgeopt.profiles.problem import TextWorkload

    writable(output)
    if on is not None and gates is not None:
        raise InputError(Finding("--gates", "is given with --on, which times the model", "give one of the two"))
    timeout_s, device = duration("--timeout", timeout), None if on is None else load_device(on)
    profiled = config.endswith((".yaml", ".yml")) if is_path(config) else config in known_names("model")
    if device is None and gates is None:
        from edgeopt.profiler.architectures import derive_model

        hand_over(derive_model(config, name=name, source=source, dtype=dtype, weights=weights), output, json)
        return
    if profiled and (name, source, dtype, weights) == (None, None, None, None):
        model = load_model(config)
    else:
        from edgeopt.profiler.architectures import derive_model

        model = derive_model(config, name=name, source=source, dtype=dtype, weights=weights)
    if device is None:
        hand_over(_with_gates(model, gates or 1, (prompt_tokens or [64])[0], new_tokens), output, json)
        return
    batches = batch or [1]
    loads: list[Workload] = (
        [
            TextWorkload(prompt_tokens=prompt, new_tokens=new_tokens, batch=size)
            for size in batches
            for prompt in prompt_tokens or [64]
        ]
        if model.family == "causal_lm"
        else [_images(model, steps, size, guidance) for size in batches]
    )
    from edgeopt.profiler import profile_model as measure

    with progress_line(json) as progress:
        timed = measure(
            device, [model] * len(loads), loads, repeats=repeats, processes=processes, timeout_s=timeout_s,
            command=context.obj, progress=progress, patches=patches,
        )  # fmt: skip
    hand_over(timed, output, json)


def _with_gates(model: Model, prompts: int, prompt_tokens: int, new_tokens: int) -> Model:
    """Measure a mixture's gates."""
    from edgeopt.errors import Finding, InputError
    from edgeopt.profiler.gates import measure_gates

    if model.family != "causal_lm":
        message = f"'{model.name}' is no language model"
        raise InputError(Finding("--gates", message, "leave it out, or name a mixture of experts"))
    gates = measure_gates(model, prompts=prompts, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    return model.model_copy(update={"gates": gates})


def _images(model: Model, steps: int, images: int, guidance: float) -> Workload:
    """Return the workload of a model that makes images; the levels of a cascade all take the same steps."""
    from edgeopt.profiles.model import CascadedDiffusion
    from edgeopt.profiles.problem import CascadeWorkload, ImageWorkload

    if isinstance(model, CascadedDiffusion):
        return CascadeWorkload(steps=[steps] * len(model.levels), images=images, guidance=guidance)
    return ImageWorkload(steps=steps, images=images, guidance=guidance)
