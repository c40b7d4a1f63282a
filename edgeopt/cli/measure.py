"""The verbs that measure or derive: profile device, profile link, profile model."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeopt.cli.common import Json, Output, duration, hand_over, progress_line, writable

__all__ = ["profile_device", "profile_link", "profile_model"]


def profile_device(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the profile.")],
    output: Output = None,
    threads: Annotated[int | None, typer.Option(help="Threads the device may use; default: all cores.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Number format to rate; repeatable. Default float32.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Model to time element by element; repeatable.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="For language models.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="For language models.")] = 32,
    batch: Annotated[int, typer.Option(help="Sequences or images at once.")] = 1,
    steps: Annotated[int, typer.Option(help="For diffusion models.")] = 4,
    guidance: Annotated[float, typer.Option(help="For diffusion models; above 1 doubles the batch.")] = 1.0,
    repeats: Annotated[int, typer.Option(help="Requests timed per process and model.")] = 3,
    processes: Annotated[int, typer.Option(help="Fresh processes to time in.")] = 2,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="For each process.")] = "600 s",
    json: Json = False,
) -> None:
    """Measure what this machine, used with some threads, computes and moves per second."""
    from edgeopt.profiler import profile_device as measure
    from edgeopt.profiles import load_model
    from edgeopt.profiles.problem import ImageWorkload, TextWorkload

    writable(output)
    timeout_s = duration("--timeout", timeout)
    models = [load_model(ref) for ref in model or []]
    text = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch": batch}
    image = {"steps": steps, "images": batch, "guidance": guidance}
    loads = [
        TextWorkload(**text) if loaded.family == "causal_lm" else ImageWorkload(**image) for loaded in models
    ]  # fmt: skip
    with progress_line(json) as progress:
        device = measure(
            name, threads=threads, dtypes=tuple(dtype or ["float32"]), models=models, workloads=loads, repeats=repeats,
            processes=processes, timeout_s=timeout_s, command=context.obj, progress=progress,
        )  # fmt: skip
    hand_over(device, output, json)


def profile_link(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the network profile.")],
    output: Output = None,
    repeats: Annotated[int, typer.Option(help="Messages timed of each size.")] = 40,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="For the whole measurement.")] = "120 s",
    json: Json = False,
) -> None:
    """Measure latency and rate between two processes of this machine; write a network in which every pair has them."""
    from datetime import date

    from edgeopt.profiler import profile_link as measure
    from edgeopt.profiles.network import Network

    writable(output)
    timeout_s = duration("--timeout", timeout)
    with progress_line(json) as progress:
        link = measure(repeats=repeats, timeout_s=timeout_s, progress=progress)
    source = (
        f"measured on {date.today().isoformat()} by {context.obj} between two processes over the loopback interface"
    )
    hand_over(Network(name=name, source=source, default=link), output, json)


def profile_model(
    config: Annotated[str, typer.Argument(help="A published model's name, a config.json, or a pipeline's folder.")],
    output: Output = None,
    name: Annotated[str | None, typer.Option(help="Name of the profile; default: after the configuration.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the configuration comes from.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Number format of weights and activations.")] = None,
    weights: Annotated[str | None, typer.Option(help="int8 or int4: how the blocks' matrices are stored.")] = None,
    json: Json = False,
) -> None:
    """Derive a model's FLOPs, bytes and cuts from its architecture, without weights."""
    from edgeopt.profiler.architectures import derive_model

    writable(output)
    model = derive_model(config, name=name, source=source, dtype=dtype, weights=weights)
    hand_over(model, output, json)
