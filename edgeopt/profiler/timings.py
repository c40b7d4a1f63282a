"""Time models element by element on this machine, into a device's measured tables.

Several fresh processes take turns over the models, so that a slow minute of the machine does not fall on one of them.
Numbers are medians over the undisturbed requests of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt import __version__
from edgeopt.plan import Plan, Stage
from edgeopt.profiler.jobs import ElementAnswer, ElementJob, ElementSamples
from edgeopt.profiler.processes import run_jobs
from edgeopt.profiles.base import DType
from edgeopt.profiles.device import Device, Efficiency, Runtime, Timing
from edgeopt.profiles.model import CausalLM, Diffusion
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import ImageWorkload, Problem, TextWorkload

__all__ = ["decode_knots", "profile_models", "whole_plan"]

Array = NDArray[np.float64]

#: Points along the context between which decode times are interpolated.
_NUM_KNOTS = 4
#: A denoising step takes the same time wherever it stands, so few are run.
_MEASURED_STEPS = 6
#: Share of its time that an undisturbed request may wait for a core.
_WAITED = 0.02
#: Where requests differ by more than this, other work disturbs them: measured again, up to as often as asked for.
_CALM = 0.1


def profile_models(
    models: Sequence[CausalLM | Diffusion],
    workloads: Sequence[TextWorkload | ImageWorkload],
    *,
    threads: int,
    repeats: int,
    processes: int,
    timeout_s: float,
    source: str,
    progress: Callable[[str], None],
) -> list[Timing]:
    """Time every model under its workload; see :func:`edgeopt.profiler.profile_device`."""
    plans = [_plans(model, load, threads) for model, load in zip(models, workloads, strict=True)]
    samples: list[list[list[ElementSamples]]] = [[[] for _ in group] for group in plans]
    for turn in range(2 * processes):
        for model, group, found in zip(models, plans, samples, strict=True):
            if turn >= processes and all(map(_is_calm, found)):
                continue
            which = "once more, the machine is busy" if turn >= processes else f"process {turn + 1} of {processes}"
            progress(f"{model.name}: {which}, {threads} thread{'s' * (threads > 1)}")
            job = ElementJob(threads=threads, plans=group, warmup=1, repeats=repeats)
            (answer,) = run_jobs([job], ElementAnswer, timeout_s)
            for old, new in zip(found, answer.plans, strict=True):
                old.append(new)
    timings: list[Timing] = []
    for model, load, group, found in zip(models, workloads, plans, samples, strict=True):
        for index, (plan, of_plan) in enumerate(zip(group, found, strict=True)):
            tables = _language(model, load) if isinstance(model, CausalLM) else _diffusion(model, load, plan)
            elements_s, waited = _undisturbed(of_plan)
            busy = f"; the machine was busy, {waited:.0%} of the time went by waiting for a core"
            rows = tables(elements_s, source + (busy if waited > _WAITED else ""))
            # Every plan of a diffusion model has the text encoder and the decoder; once is enough.
            timings += [row for row in rows if index == 0 or row.variant is not None]
    return timings


def _is_calm(found: Sequence[ElementSamples]) -> bool:
    elements_s, waited = _undisturbed(found)
    return waited <= _WAITED and _spread(elements_s.sum(axis=(1, 2))) < _CALM


def _undisturbed(found: Sequence[ElementSamples]) -> tuple[Array, float]:
    """Choose the requests that hardly waited for a core: what other processes take is not the device's speed.

    Returns
    -------
    samples : (requests, rounds, elements)
        All requests that waited at most ``_WAITED`` of their time; where fewer than two did, the calmest third.
    waited : float
        Largest share of its time that a chosen request waited.
    """
    elements_s = np.array([request for process in found for request in process.elements_s])
    waited = np.concatenate([np.array(process.waited_s) / process.requests_s for process in found])
    limit = max(_WAITED, float(np.sort(waited)[min(len(waited) - 1, max(1, len(waited) // 3 - 1))]))
    chosen = waited <= (_WAITED if (waited <= _WAITED).sum() >= 2 else limit)
    return elements_s[chosen], float(waited[chosen].max())


def _spread(totals_s: ArrayLike) -> float:
    """Half the range between the quartiles, relative to the median."""
    low, middle, high = np.percentile(totals_s, [25, 50, 75])
    return float((high - low) / 2 / middle)


def whole_plan(
    model: CausalLM | Diffusion,
    workload: TextWorkload | ImageWorkload,
    threads: int | None,
    *,
    cuts: Sequence[int],
    variants: Sequence[str | None],
    strategy: str,
) -> Plan:
    """Return a plan that runs everything on one device, cut only where the variant changes; its costs are nought."""
    device = Device(
        name="this",
        source="the machine being measured",
        compute={"float32": 1.0},
        memory=1.0,
        memory_bandwidth=1.0,
        launch_overhead=1.0,
        efficiency=Efficiency(compute=1.0, memory_bandwidth=1.0, basis="assumed"),
        runtime=Runtime(threads=threads),
    )
    network = Network(name="none", source="one device has no links")
    problem = Problem(name="measuring", model=model, workload=workload, devices=[device], network=network)
    nought = {"compute_s": 0.0, "transfer_s": 0.0, "transfer_bytes": 0.0, "memory_bytes": 0.0}
    spans = zip(pairwise([0, *cuts]), variants, strict=True)
    stages = [
        Stage(index=k, device="this", variant=variant, start=start, stop=stop, elements=f"{start} to {stop}", **nought)
        for k, ((start, stop), variant) in enumerate(spans)
    ]
    return Plan(
        edgeopt_version=__version__,
        problem=problem,
        strategy=strategy,
        backend="none",
        status="optimal",
        objective=0.0,
        bound=0.0,
        gap=0.0,
        runtime_s=0.0,
        latency_s=0.0,
        throughput_per_s=0.0,
        cuts=list(cuts),
        devices=[0] * len(stages),
        variants=[0] * len(stages),
        stages=stages,
        transfers=[],
    )


def _plans(model: CausalLM | Diffusion, load: TextWorkload | ImageWorkload, threads: int) -> list[Plan]:
    """One plan for a language model, one per denoiser for a diffusion model."""
    if isinstance(model, CausalLM):
        num_elements = sum(layer.count for layer in model.layers)
        return [whole_plan(model, load, threads, cuts=[num_elements], variants=[None], strategy="pipeline")]
    assert isinstance(load, ImageWorkload)
    load = load.model_copy(update={"steps": min(load.steps, _MEASURED_STEPS)})
    ends = [1] * (model.text_encoder is not None)
    ends.append((ends[-1] if ends else 0) + load.steps)
    ends += [ends[-1] + 1] * (model.decoder is not None)
    before, after = [None] * (model.text_encoder is not None), [None] * (model.decoder is not None)
    return [
        whole_plan(model, load, threads, cuts=ends, variants=[*before, name, *after], strategy="multi_stage")
        for name in model.variants
    ]


_Tables = Callable[[Array, str], list[Timing]]


def _language(model: CausalLM, load: TextWorkload | ImageWorkload) -> _Tables:
    """Prefill at the prompt's length, decode at a few contexts over the range of the request."""
    assert isinstance(load, TextWorkload)

    def tables(elements_s: Array, source: str) -> list[Timing]:
        def timing(phase: str, tokens: int, context: int, samples: Array) -> Timing:
            # A median over requests for each round; then a mean over rounds, since rounds add up to the request.
            values = np.median(samples, axis=0).mean(axis=0)
            spread = samples.sum(axis=2).mean(axis=1)
            return _timing(
                model.name, None, phase, model.dtype, load.batch, values, spread, source, tokens=tokens, context=context
            )

        found = [timing("prefill", load.prompt_tokens, 0, elements_s[:, :1])]
        for context, rounds in decode_knots(load.prompt_tokens, elements_s.shape[1] - 1):
            found.append(timing("decode", 1, context, elements_s[:, 1 + rounds.start : 1 + rounds.stop]))
        return found

    return tables


def decode_knots(prompt_tokens: int, num_rounds: int) -> list[tuple[int, slice]]:
    """Group decode rounds by context, in at most ``_NUM_KNOTS`` groups of equal size.

    Returns
    -------
    list of (context, slice of rounds)
        The first and the last context are those of the first and the last round, so that the table covers the request.
    """
    groups = np.array_split(np.arange(num_rounds), min(_NUM_KNOTS, num_rounds)) if num_rounds else []
    knots = []
    for k, group in enumerate(groups):
        middle = int(group[0] if k == 0 else group[-1] if k == len(groups) - 1 else group[len(group) // 2])
        knots.append((prompt_tokens + middle, slice(int(group[0]), int(group[-1]) + 1)))
    return knots


def _diffusion(model: Diffusion, load: TextWorkload | ImageWorkload, plan: Plan) -> _Tables:
    """One value for a step of the plan's denoiser, for the text encoder and for the decoder."""
    assert isinstance(load, ImageWorkload)
    denoising = next(stage for stage in plan.stages if stage.variant is not None)

    def tables(elements_s: Array, source: str) -> list[Timing]:
        (samples,) = np.moveaxis(elements_s, 1, 0)  # one round: (requests, elements)
        found = []
        if model.text_encoder is not None:
            found.append(("text_encoder", None, load.images, samples[:, 0]))
        batch = load.images * (2 if load.guidance > 1 else 1)
        found.append(("step", denoising.variant, batch, samples[:, denoising.start : denoising.stop].mean(axis=1)))
        if model.decoder is not None:
            found.append(("decoder", None, load.images, samples[:, -1]))
        return [
            _timing(model.name, variant, phase, model.dtype, batch, np.median(values, keepdims=True), values, source)
            for phase, variant, batch, values in found
        ]

    return tables


def _timing(
    model: str,
    variant: str | None,
    phase: str,
    dtype: DType,
    batch: int,
    elements_s: Array,
    totals_s: Array,
    source: str,
    tokens: int | None = None,
    context: int | None = None,
) -> Timing:
    """Write a table row; ``totals_s`` are what its spread is of."""
    return Timing.model_validate(
        {
            "model": model,
            "variant": variant,
            "phase": phase,
            "dtype": dtype,
            "batch": batch,
            "tokens": tokens,
            "context": context,
            "unit": "ms",
            "elements": [round(1e3 * float(value), 6) for value in elements_s],
            "repeats": len(totals_s),
            "spread": round(min(max(_spread(totals_s), 1e-4), 1.0), 4) if len(totals_s) > 1 else None,
            "source": source,
        }
    )
