"""Time models element by element on this machine, into a device's measured tables.

Several fresh processes take turns over the models, so that a slow minute of the machine does not fall on one of them.
Numbers are medians over the undisturbed requests of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from edgeopt import __version__
from edgeopt.costs.solvers import solver_of
from edgeopt.executor.layout import yardstick_for
from edgeopt.plan import Plan, Stage
from edgeopt.profiler.jobs import ElementAnswer, ElementJob, ElementSamples
from edgeopt.profiler.processes import run_jobs
from edgeopt.profiler.samples import WAITED, is_calm, spread, undisturbed, wake_s
from edgeopt.profiler.scoring import score_rows
from edgeopt.profiles.base import DType
from edgeopt.profiles.device import Device, Efficiency, Runtime, Timing, Yardstick
from edgeopt.profiles.model import CascadedDiffusion, CausalLM, Diffusion, Model
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import CascadeWorkload, ImageWorkload, Problem, TextWorkload, Workload

__all__ = ["Measuring", "decode_knots", "profile_models", "slab_rows", "whole_plan"]

Array = NDArray[np.float64]

#: Points along the context between which decode times are interpolated.
_NUM_KNOTS = 4
#: A denoising step takes the same time wherever it stands, so few are run.
_MEASURED_STEPS = 6
#: Shares of the latent's rows at which a step of a patch is timed.
_SLABS = (0.25, 0.5, 0.75)


@dataclass
class Measuring:
    """One model under some workloads, and what was seen of it so far.

    A job runs all the workloads in one process, one after the other; with ``patches`` it also times slabs of a
    denoiser's image, for those that can be cut so.
    """

    model: Model
    workloads: Sequence[Workload]
    runtime: Runtime
    patches: bool = False
    samples: list[list[ElementSamples]] = field(init=False)
    #: What the yardstick takes at the speed that the tables are for; ``None``: at that of the median request.
    usual_s: float | None = None

    def __post_init__(self) -> None:
        """One plan for each workload and denoiser."""
        self._plans = [
            (load, plan) for load in self.workloads for plan in _plans(self.model, load, self.runtime, self.patches)
        ]
        self.samples = [[] for _ in self._plans]

    def job(self, repeats: int, *, warmup: int = 1, whole: bool = False) -> ElementJob:
        """Return the job of one process; ``whole``: rounds only, nothing timed inside them."""
        plans = [plan for _, plan in self._plans]
        threads = self.runtime.threads or 1
        return ElementJob(
            threads=threads, plans=plans, warmup=warmup, repeats=repeats, whole=whole, yardstick=self.yardstick
        )

    @property
    def yardstick(self) -> Yardstick | None:
        """What says how fast the machine is meanwhile: known for one thread of a processor."""
        alone = self.runtime.accelerator == "cpu" and self.runtime.threads == 1
        return yardstick_for(self.model) if alone else None

    def yardsticks_s(self) -> list[float]:
        """Return what it took in every request, seconds."""
        return [seconds for found in self.samples for process in found for seconds in process.yardsticks_s]

    def add(self, answer: ElementAnswer) -> None:
        """Take in what a process found."""
        for old, new in zip(self.samples, answer.plans, strict=True):
            old.append(new)

    @property
    def is_calm(self) -> bool:
        """Whether what was found is hardly disturbed."""
        return all(is_calm(found, self.usual_s) for found in self.samples)

    def rounds_s(self, process: int | None = None) -> list[Array]:
        """Median seconds of every round, (rounds,), by plan: of each workload, and of each denoiser in it.

        ``process``: of its requests alone; all processes' otherwise.
        """
        seen = self.samples if process is None else [found[process : process + 1] for found in self.samples]
        return [np.median(undisturbed(found, self.usual_s)[0].sum(axis=2), axis=0) for found in seen]

    def timings(self, source: str) -> list[Timing]:
        """Tables of all workloads."""
        rows: list[Timing] = []
        for (load, plan), found in zip(self._plans, self.samples, strict=True):
            text = isinstance(self.model, CausalLM)
            if plan.strategy == "patch":
                tables = _slabs(self.model, load, plan)
            else:
                tables = _language(self.model, load, plan) if text else _denoised(self.model, load, plan)
            elements_s, waited = undisturbed(found, self.usual_s)
            woken_s = wake_s(found, self.usual_s)
            busy = f"; the machine was busy, {waited:.0%} of the time went by waiting for a core"
            new = tables(elements_s, source + (busy if waited > WAITED else ""))
            if woken_s is not None:
                new = [
                    row.model_copy(update={"wake": round(1e3 * woken_s, 6)}) if row.phase == "decode" else row
                    for row in new
                ]
            # Several plans of a model have the same text encoder, decoder or denoiser of a level; once is enough.
            known = {(row.phase, row.variant, row.batch, row.rows) for row in rows}
            rows += [row for row in new if text or (row.phase, row.variant, row.batch, row.rows) not in known]
        return rows


def profile_models(
    models: Sequence[Model],
    workloads: Sequence[Workload],
    *,
    runtime: Runtime,
    repeats: int,
    processes: int,
    timeout_s: float,
    source: str,
    progress: Callable[[str], None],
    patches: bool = False,
) -> tuple[list[Timing], Runtime]:
    """Time every model under its workload; see :func:`edgeopt.profiler.profile_device`.

    Returns
    -------
    timings : list of Timing
        At the speed of the runtime's yardsticks.
    runtime : Runtime
        As given, with the yardsticks that it lacked.
    """
    measurings = [Measuring(model, loads, runtime, patches) for model, loads in _by_model(models, workloads)]
    count = runtime.threads or 1
    for turn in range(2 * processes):
        for each in measurings:
            if turn >= processes and each.is_calm:
                continue
            which = "once more, the machine is busy" if turn >= processes else f"process {turn + 1} of {processes}"
            progress(f"{each.model.name}: {which}, {count} thread{'s' * (count > 1)}")
            (answer,) = run_jobs([each.job(repeats)], ElementAnswer, timeout_s)
            each.add(answer)
    runtime = runtime.model_copy(
        update={
            name: _usual_s(runtime.yardstick_s(which), [each for each in measurings if each.yardstick == which])
            for name, which in (("yardstick", "cached"), ("yardstick_streamed", "streamed"))
        }
    )
    for each in measurings:
        each.usual_s = None if each.yardstick is None else runtime.yardstick_s(each.yardstick)
    rows = [row for each in measurings for row in each.timings(source)]
    return rows + [row for each in measurings for row in score_rows(each.model, source)], runtime


def _usual_s(known_s: float | None, measurings: Sequence[Measuring]) -> float | None:
    """Seconds of a yardstick at the speed that tables are for: that of earlier ones, or the usual one by now."""
    found = [seconds for each in measurings for seconds in each.yardsticks_s()]
    return float(np.median(found)) if known_s is None and found else known_s


def _by_model(models: Sequence[Model], workloads: Sequence[Workload]) -> list[tuple[Model, list[Workload]]]:
    """Workloads of each model together, models in order of their first."""
    groups: dict[int, tuple[Model, list[Workload]]] = {}
    for model, load in zip(models, workloads, strict=True):
        groups.setdefault(id(model), (model, []))[1].append(load)
    return list(groups.values())


def whole_plan(
    model: Model,
    workload: Workload,
    runtime: Runtime,
    *,
    cuts: Sequence[int],
    variants: Sequence[str | None],
    strategy: str,
) -> Plan:
    """Return a plan that runs everything on one device, cut only where the variant changes; its costs are nought."""
    device = Device(
        name="this",
        source="the machine being measured",
        compute={model.dtype: 1.0},
        memory=1.0,
        memory_bandwidth=1.0,
        launch_overhead=1.0,
        efficiency=Efficiency(compute=1.0, memory_bandwidth=1.0, basis="assumed"),
        runtime=runtime,
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


def _plans(model: Model, load: Workload, runtime: Runtime, patches: bool) -> list[Plan]:
    """One plan per format of a language model's weights, or per denoiser of a diffusion model; then those of slabs."""
    if isinstance(model, CausalLM):
        assert isinstance(load, TextWorkload)
        whole = load.model_copy(update={"prefill_chunk": None})
        ends = [sum(layer.count for layer in model.layers)]
        formats = [None, *(model.quality.loss if model.quality is not None else ())]
        return [whole_plan(model, whole, runtime, cuts=ends, variants=[name], strategy="pipeline") for name in formats]
    if isinstance(model, CascadedDiffusion):
        return _cascade_plans(model, load, runtime)
    assert isinstance(load, ImageWorkload)
    load = load.model_copy(update={"steps": min(load.steps, _MEASURED_STEPS)})
    ends = [1] * (model.text_encoder is not None)
    ends.append((ends[-1] if ends else 0) + solver_of(model.sampler, load.steps).calls)
    ends += [ends[-1] + 1] * (model.decoder is not None)
    before, after = [None] * (model.text_encoder is not None), [None] * (model.decoder is not None)
    plans = [
        whole_plan(model, load, runtime, cuts=ends, variants=[*before, name, *after], strategy="multi_stage")
        for name in model.variants
    ]
    return [*plans, *_slab_plans(model, load, runtime)] if patches else plans


def _slab_plans(model: Diffusion, load: ImageWorkload, runtime: Runtime) -> list[Plan]:
    """Plans of two patches, of which the first is timed, for every denoiser that has patches."""
    total = model.latent_shape[1]
    return [
        whole_plan(model, load, runtime, cuts=[rows, total], variants=[name, name], strategy="patch")
        for name, variant in model.variants.items()
        if variant.patch is not None
        for rows in slab_rows(total, variant.patch.multiple)
    ]


def slab_rows(total: int, multiple: int) -> list[int]:
    """Return at which numbers of rows slabs are timed: none where there is only one way to share them out."""
    units = total // multiple
    counts = sorted({min(max(round(share * units), 1), units - 1) for share in _SLABS})
    return [multiple * count for count in counts] if len(counts) > 1 else []


def _cascade_plans(model: CascadedDiffusion, load: Workload, runtime: Runtime) -> list[Plan]:
    """As many plans as the level with the most denoisers has: each runs one denoiser of every level."""
    assert isinstance(load, CascadeWorkload)
    steps = [min(count, _MEASURED_STEPS) for count in load.steps or [_MEASURED_STEPS] * len(model.levels)]
    load = load.model_copy(update={"steps": steps})
    encoder = [1] if model.text_encoder is not None else []
    ends = [*encoder, *accumulate(steps, initial=len(encoder))]
    ends.pop(len(encoder))
    names = [list(level.variants) for level in model.levels]
    plans = []
    for k in range(max(map(len, names))):
        chosen = [f"{each[k % len(each)]}@{count}" for each, count in zip(names, steps, strict=True)]
        variants = [*[None] * len(encoder), *chosen]
        plans.append(whole_plan(model, load, runtime, cuts=ends, variants=variants, strategy="hierarchical"))
    return plans


_Tables = Callable[[Array, str], list[Timing]]


def _language(model: CausalLM, load: Workload, plan: Plan) -> _Tables:
    """Prefill at the prompt's length, decode at a few contexts over the range of the request."""
    assert isinstance(load, TextWorkload)

    def tables(elements_s: Array, source: str) -> list[Timing]:
        def timing(phase: str, tokens: int, context: int, samples: Array) -> Timing:
            # A median over requests for each round; then a mean over rounds, since rounds add up to the request.
            values = np.median(samples, axis=0).mean(axis=0)
            spread = samples.sum(axis=2).mean(axis=1)
            return _timing(
                model.name, plan.stages[0].variant, phase, model.dtype, load.batch, values, spread, source,
                tokens=tokens, context=context,
            )  # fmt: skip

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


def _denoised(model: Diffusion | CascadedDiffusion, load: Workload, plan: Plan) -> _Tables:
    """One value for a step of each of the plan's denoisers, for the text encoder and for the decoder."""
    assert isinstance(load, ImageWorkload | CascadeWorkload)
    denoising = [stage for stage in plan.stages if stage.variant is not None]

    def tables(elements_s: Array, source: str) -> list[Timing]:
        (samples,) = np.moveaxis(elements_s, 1, 0)  # one round: (requests, elements)
        found = []
        if model.text_encoder is not None:
            found.append(("text_encoder", None, load.images, samples[:, 0]))
        batch = load.images * (2 if load.guidance > 1 else 1)
        for stage in denoising:
            name = f"{stage.variant}".partition("@")[0]  # of a cascade, with its steps
            found.append(("step", name, batch, samples[:, stage.start : stage.stop].mean(axis=1)))
        if isinstance(model, Diffusion) and model.decoder is not None:
            found.append(("decoder", None, load.images, samples[:, -1]))
        return [
            _timing(model.name, variant, phase, model.dtype, batch, np.median(values, keepdims=True), values, source)
            for phase, variant, batch, values in found
        ]

    return tables


def _slabs(model: Model, load: Workload, plan: Plan) -> _Tables:
    """One value for a step of the plan's first patch."""
    assert isinstance(load, ImageWorkload)
    stage, batch = plan.stages[0], load.images * (2 if load.guidance > 1 else 1)

    def tables(elements_s: Array, source: str) -> list[Timing]:
        steps_s, row = elements_s[:, 0].mean(axis=1), (model.name, stage.variant, "slab", model.dtype, batch)
        return [_timing(*row, np.median(steps_s, keepdims=True), steps_s, source, rows=stage.stop - stage.start)]

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
    rows: int | None = None,
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
            "rows": rows,
            "unit": "ms",
            "elements": [round(1e3 * float(value), 6) for value in elements_s],
            "repeats": len(totals_s),
            "spread": round(min(max(spread(totals_s), 1e-4), 1.0), 4) if len(totals_s) > 1 else None,
            "source": source,
        }
    )
