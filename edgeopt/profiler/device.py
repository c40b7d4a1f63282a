"""Measure this machine into a device profile: peaks, overheads, memory, and timings of models on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Literal

from edgeopt.costs.weights import weights_bytes
from edgeopt.errors import Finding, InputError, MissingDependencyError
from edgeopt.profiler.drafts import profile_drafts
from edgeopt.profiler.jobs import MachineFigures, MachineJob
from edgeopt.profiler.processes import run_jobs
from edgeopt.profiler.timings import profile_models
from edgeopt.profiles.base import DType
from edgeopt.profiles.checks import check_fit
from edgeopt.profiles.device import Device, Efficiency, Margin, Messages, Runtime, Timing
from edgeopt.profiles.model import CascadedDiffusion, CausalLM, Model
from edgeopt.profiles.problem import CascadeWorkload, ImageWorkload, TextWorkload, Workload

__all__ = ["available_memory_bytes", "profile_device", "profile_model", "slowed", "usable_cores"]


def profile_device(
    name: str,
    *,
    threads: int | None = None,
    dtypes: Sequence[DType] = ("float32",),
    accelerator: Literal["cpu", "cuda"] = "cpu",
    models: Sequence[Model] = (),
    workloads: Sequence[Workload] | None = None,
    repeats: int = 3,
    processes: int = 2,
    timeout_s: float = 600.0,
    command: str | None = None,
    progress: Callable[[str], None] | None = None,
    patches: bool = False,
) -> Device:
    """Measure this machine, used with a number of threads.

    Parameters
    ----------
    name
        Of the profile.
    threads
        The device's threads, also when plans are executed; ``None``: all cores this process may use.
    dtypes
        Number formats to rate; efficiencies are measured in the first.
    accelerator
        What computes: the processor, or this machine's first CUDA device, timed by events.
    models, workloads
        Models to time element by element, each under its workload (a model may occur several times). Without
        ``workloads``: 64 prompt and 32 new tokens, 4 steps.
    repeats, processes
        Whole requests timed in each of several fresh processes, taking turns with the other models.
    timeout_s
        For each process.
    command
        What to cite as the source; default: this call.
    patches
        Time denoisers by slabs as well, for the strategy ``patch``: four times as many runs.

    Returns
    -------
    Device
        Without power: nothing here measures it.

    Raises
    ------
    InputError
        A model that cannot be built, or a request that makes no sense.
    ExecutionError
        A measuring process failed or ran out of time.
    """
    say = progress or (lambda text: None)
    count = usable_cores() if threads is None else threads
    loads = list(workloads) if workloads is not None else [_default(model) for model in models]
    _check(count, dtypes, models, loads, repeats, processes, accelerator)
    say(f"{name}: matrix rates and memory with {count} thread{'s' * (count > 1)}")
    job = MachineJob(threads=count, dtypes=list(dtypes), accelerator=accelerator)
    (figures,) = run_jobs([job], MachineFigures, timeout_s)
    cited = command or f"profile_device({name!r}, threads={count})"
    source = f"measured on {date.today().isoformat()} by {cited} on {_processor()}, torch {figures.torch_version}"
    timings, runtime = profile_models(
        models,
        loads,
        runtime=Runtime(threads=count, accelerator=accelerator),
        repeats=repeats,
        processes=processes,
        timeout_s=timeout_s,
        source=source,
        progress=say,
        patches=patches,
    )
    drafts = profile_drafts(
        models,
        loads,
        runtime=runtime,
        repeats=repeats * processes,
        timeout_s=timeout_s,
        source=source,
        progress=say,
    )
    return Device(
        name=name,
        description=f"This machine with {count} thread{'s' * (count > 1)}, as measured.",
        source=source,
        sources={
            "memory": "available when measured, to this process (operating system and control group)"
            if figures.total_bytes is None
            else "of the accelerator, as its driver says",
            "memory_bandwidth": "copy of 256 MiB, bytes read and written",
            "messages": "processor time of both ends in one process, over loopback, halved; rested: what the way of a "
            "message takes longer by the clock after 30 ms without one, halved",
            "launch_overhead": "an operation of a decoder block of width 16, views and module calls included",
            "efficiency.compute_by_rows": "linear layers of 1024 x 2816 with weights in no cache, in the first format",
            "efficiency.memory_bandwidth": "weights of such layers with one row, relative to the copy",
            "margin": "measured: what a process of torch holds without a model; share of its memory that is no tensor "
            "after 2000 allocations of up to 16 MiB came and went beside 448 MiB that stay",
        },
        compute=figures.flop_per_s,
        memory=available_memory_bytes() if figures.total_bytes is None else figures.total_bytes,
        memory_bandwidth=figures.memory_bytes_per_s,
        launch_overhead=figures.launch_s,
        efficiency=Efficiency(
            compute=figures.compute_efficiency,
            memory_bandwidth=figures.memory_efficiency,
            rows=figures.rows,
            compute_by_rows=figures.compute_by_rows,
            basis="measured",
        ),
        margin=Margin(workspace=figures.workspace_bytes, fragmentation=figures.fragmentation, basis="measured"),
        messages=Messages(
            each=figures.message_s,
            per_mebibyte=figures.message_s_per_byte * 2**20,
            rested=figures.rested_message_s,
        ),
        runtime=runtime,
        timings=_with(timings, drafts),
    )


def profile_model(
    device: Device,
    models: Sequence[Model],
    workloads: Sequence[Workload],
    *,
    repeats: int = 3,
    processes: int = 2,
    timeout_s: float = 600.0,
    command: str | None = None,
    progress: Callable[[str], None] | None = None,
    patches: bool = False,
) -> Device:
    """Time models on this machine as the device runs them: with its threads or its accelerator, in their own dtype.

    Parameters
    ----------
    device
        A profile of this machine; its ``runtime`` says how to compute. Where that has a CPU quota, models are timed
        without it and the times divided by it.
    models, workloads, repeats, processes, timeout_s, command, progress, patches
        As for :func:`profile_device`.

    Returns
    -------
    Device
        The device with the new tables; a row for the same model, phase, dtype, batch and length is replaced.

    Raises
    ------
    InputError
        A model that cannot be built or does not fit into memory, or a request that makes no sense.
    ExecutionError
        A measuring process failed or ran out of time.
    """
    count = device.runtime.threads or usable_cores()
    _check(count, [model.dtype for model in models], models, workloads, repeats, processes, device.runtime.accelerator)
    for model in models:
        _check_room(model)
    cited = command or f"profile_model({device.name!r})"
    threads = f"{count} thread{'s' * (count > 1)}, {device.runtime.accelerator}"
    runtime = device.runtime.model_copy(update={"threads": count})
    source = f"measured on {date.today().isoformat()} by {cited} on {_processor()}, {threads}"
    say = progress or (lambda text: None)
    timings, measured = profile_models(
        models,
        workloads,
        runtime=runtime,
        repeats=repeats,
        processes=processes,
        timeout_s=timeout_s,
        source=source,
        progress=say,
        patches=patches,
    )
    drafts = profile_drafts(
        models,
        workloads,
        runtime=measured,
        repeats=repeats * processes,
        timeout_s=timeout_s,
        source=source,
        progress=say,
    )
    timings = _with(timings, drafts)
    runtime = measured.model_copy(update={"threads": device.runtime.threads})
    if device.runtime.cpu_quota is not None:
        timings = _at_quota(timings, device.runtime.cpu_quota)
    new = {_point(row) for row in timings}
    kept = [row for row in device.timings if _point(row) not in new]
    return device.model_copy(update={"runtime": runtime, "timings": [*kept, *timings]})


def slowed(device: Device, quota: float, name: str) -> Device:
    """Return a measured device at a fraction of its speed, as its ``runtime.cpu_quota`` makes it when plans are run.

    Parameters
    ----------
    quota
        Over 0, up to 1: rates are multiplied by it, times divided. Timing under a throttle would measure the
        throttle's grain, too.
    name
        Of the new profile.
    """
    whole = quota * (device.runtime.cpu_quota or 1.0)
    return device.model_copy(
        update={
            "name": name,
            "description": f"{device.name} at {quota:g} of its speed.",
            "compute": {dtype: quota * rate for dtype, rate in device.compute.items()},
            "memory_bandwidth": quota * device.memory_bandwidth,
            "launch_overhead": device.launch_overhead / quota,
            "messages": device.messages and _messages_at_quota(device.messages, quota),
            "runtime": device.runtime.model_copy(update={"cpu_quota": None if whole == 1 else whole}),
            "timings": _at_quota(device.timings, quota),
        }
    )


def _at_quota(timings: Sequence[Timing], quota: float) -> list[Timing]:
    how = f"; divided by the quota of {quota:g}" if quota != 1 else ""
    return [
        row.model_copy(
            update={
                "elements": [value / quota for value in row.elements],
                "wake": None if row.wake is None else row.wake / quota,
                "source": row.source + how,
            }
        )
        for row in timings
    ]


def _messages_at_quota(messages: Messages, quota: float) -> Messages:
    # Pacing slows computing down, not what messages wait for.
    return messages.model_copy(update={"each": messages.each / quota, "per_mebibyte": messages.per_mebibyte / quota})


def _with(timings: Sequence[Timing], others: Sequence[Timing]) -> list[Timing]:
    """Add what is timed nowhere yet."""
    known = {_point(row) for row in timings}
    return [*timings, *(row for row in others if _point(row) not in known)]


def _point(row: Timing) -> tuple[object, ...]:
    return row.model, row.variant, row.phase, row.dtype, row.batch, row.tokens, row.context, row.rows


def _check_room(model: Model) -> None:
    """Refuse a model whose weights would push the machine into swapping; a CUDA device says so itself."""
    needed = weights_bytes(model)
    available = available_memory_bytes()
    if needed > 0.9 * available:
        message = f"{model.name!r} has {needed / 2**30:.1f} GiB of weights, {available / 2**30:.1f} GiB are available"
        raise InputError(Finding("model", message, "measure a model of fewer layers, or let the roofline predict it"))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory_bytes() -> int:
    """Return memory that can be had without swapping, under the control group's limit where there is one."""
    try:
        import psutil
    except ImportError as error:
        raise MissingDependencyError("psutil", "torch", "measuring a device") from error
    available = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        allowed = [Path(path).read_text().strip() if Path(path).is_file() else "" for path in (limit, used)]
        if all(text.isdigit() for text in allowed):
            available = min(available, int(allowed[0]) - int(allowed[1]))
    return available


def _default(model: Model) -> Workload:
    if isinstance(model, CascadedDiffusion):
        return CascadeWorkload(steps=[4] * len(model.levels))
    return TextWorkload(prompt_tokens=64, new_tokens=32) if isinstance(model, CausalLM) else ImageWorkload(steps=4)


def _check(
    threads: int,
    dtypes: Sequence[str],
    models: Sequence[Model],
    workloads: Sequence[Workload],
    repeats: int,
    processes: int,
    accelerator: str,
) -> None:
    wrong = []
    if not 1 <= threads <= usable_cores():
        cores = usable_cores()
        mend = f"ask for 1 to {cores}"
        wrong.append(Finding("threads", f"{threads} threads on {cores} cores would measure their quarrel", mend))
    if accelerator not in ("cpu", "cuda"):
        wrong.append(Finding("accelerator", f"{accelerator!r} cannot be measured", "use cpu or cuda"))
    if not dtypes:
        wrong.append(Finding("dtypes", "no number format to measure", "name at least one, such as float32"))
    if len(models) != len(workloads):
        wrong.append(Finding("workloads", f"{len(workloads)} workloads for {len(models)} models", "give one for each"))
    wrong += [
        Finding("workloads", f"model {model.name!r} is a {model.family} model, its workload is {load.kind}", "swap it")
        for model, load in zip(models, workloads, strict=False)
        if any(check_fit(load, model))
    ]
    if repeats < 1 or processes < 1:
        wrong.append(Finding("repeats", "nothing would be measured", "give at least 1"))
    if wrong:
        raise InputError(wrong)


def _processor() -> str:
    """Name of the processor as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
