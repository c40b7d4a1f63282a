"""Measure this machine into a device profile: peaks, overheads, memory, and timings of models on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from edgeopt.errors import Finding, InputError, MissingDependencyError
from edgeopt.profiler.jobs import MachineFigures, MachineJob
from edgeopt.profiler.processes import run_jobs
from edgeopt.profiler.timings import profile_models
from edgeopt.profiles.base import DType
from edgeopt.profiles.device import Device, Efficiency, Runtime
from edgeopt.profiles.model import CausalLM, Diffusion
from edgeopt.profiles.problem import ImageWorkload, TextWorkload

__all__ = ["available_memory_bytes", "profile_device", "usable_cores"]


def profile_device(
    name: str,
    *,
    threads: int | None = None,
    dtypes: Sequence[DType] = ("float32",),
    models: Sequence[CausalLM | Diffusion] = (),
    workloads: Sequence[TextWorkload | ImageWorkload] | None = None,
    repeats: int = 3,
    processes: int = 2,
    timeout_s: float = 600.0,
    command: str | None = None,
    progress: Callable[[str], None] | None = None,
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
    models, workloads
        Models to time element by element, each under its workload (a model may occur several times). Without
        ``workloads``: 64 prompt and 32 new tokens, 4 steps.
    repeats, processes
        Whole requests timed in each of several fresh processes, taking turns with the other models.
    timeout_s
        For each process.
    command
        What to cite as the source; default: this call.

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
    _check(count, dtypes, models, loads, repeats, processes)
    say(f"{name}: matrix rates and memory with {count} thread{'s' * (count > 1)}")
    (figures,) = run_jobs([MachineJob(threads=count, dtypes=list(dtypes))], MachineFigures, timeout_s)
    cited = command or f"profile_device({name!r}, threads={count})"
    source = f"measured on {date.today().isoformat()} by {cited} on {_processor()}, torch {figures.torch_version}"
    timings = profile_models(
        models,
        loads,
        threads=count,
        repeats=repeats,
        processes=processes,
        timeout_s=timeout_s,
        source=source,
        progress=say,
    )
    return Device(
        name=name,
        description=f"This machine with {count} thread{'s' * (count > 1)}, as measured.",
        source=source,
        sources={
            "memory": "available when measured, to this process (operating system and control group)",
            "memory_bandwidth": "copy of 256 MiB, bytes read and written",
            "launch_overhead": "one transformer block of width 16, one token",
            "efficiency.compute": "transformer block, width 768, 256 tokens, relative to the matrix rate",
            "efficiency.memory_bandwidth": "weights of single-token products, relative to the copy",
        },
        compute=figures.flop_per_s,
        memory=available_memory_bytes(),
        memory_bandwidth=figures.memory_bytes_per_s,
        launch_overhead=figures.launch_s,
        efficiency=Efficiency(
            compute=figures.compute_efficiency, memory_bandwidth=figures.memory_efficiency, basis="measured"
        ),
        runtime=Runtime(threads=count),
        timings=timings,
    )


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


def _default(model: CausalLM | Diffusion) -> TextWorkload | ImageWorkload:
    return TextWorkload(prompt_tokens=64, new_tokens=32) if isinstance(model, CausalLM) else ImageWorkload(steps=4)


def _check(
    threads: int,
    dtypes: Sequence[str],
    models: Sequence[CausalLM | Diffusion],
    workloads: Sequence[TextWorkload | ImageWorkload],
    repeats: int,
    processes: int,
) -> None:
    wrong = []
    if not 1 <= threads <= usable_cores():
        cores = usable_cores()
        mend = f"ask for 1 to {cores}"
        wrong.append(Finding("threads", f"{threads} threads on {cores} cores would measure their quarrel", mend))
    if not dtypes:
        wrong.append(Finding("dtypes", "no number format to measure", "name at least one, such as float32"))
    if len(models) != len(workloads):
        wrong.append(Finding("workloads", f"{len(workloads)} workloads for {len(models)} models", "give one for each"))
    wrong += [
        Finding("workloads", f"model {model.name!r} is a {model.family} model, its workload is {load.kind}", "swap it")
        for model, load in zip(models, workloads, strict=False)
        if isinstance(model, CausalLM) != isinstance(load, TextWorkload)
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
