"""Tables of drafting and verifying, for models whose drafts can be built (:mod:`edgeopt.profiler.passes`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgeopt.costs.drafting import draft_model
from edgeopt.executor.layout import yardstick_for
from edgeopt.profiler.jobs import PassJob, PassSamples
from edgeopt.profiler.processes import run_jobs
from edgeopt.profiles.device import Runtime, Timing
from edgeopt.profiles.model import CausalLM, Model
from edgeopt.profiles.problem import TextWorkload, Workload

__all__ = ["pass_rows", "profile_drafts"]

#: Lengths of drafts whose checking is timed; between them it is interpolated.
_LENGTHS = (1, 2, 4, 8, 12, 16)


def profile_drafts(
    models: Sequence[Model],
    workloads: Sequence[Workload],
    *,
    runtime: Runtime,
    repeats: int,
    timeout_s: float,
    source: str,
    progress: Callable[[str], None],
) -> list[Timing]:
    """Time the drafts of each model and its checking of them, under the first workload of one sequence.

    One thread of a processor is timed; for other devices rooflines tell.
    """
    rows: dict[str, list[Timing]] = {}
    for model, load in zip(models, workloads, strict=True):
        if not (isinstance(model, CausalLM) and isinstance(load, TextWorkload) and model.drafts and load.batch == 1):
            continue
        buildable = model.architecture is not None and all(draft.architecture for draft in model.drafts.values())
        if not buildable or model.name in rows or runtime.accelerator != "cpu" or runtime.threads != 1:
            continue
        progress(f"{model.name}: drafting and verifying, 1 thread")
        yardstick_s = runtime.yardstick_s(yardstick_for(model))
        job = PassJob(
            threads=1, model=model, workload=load, lengths=list(_LENGTHS), repeats=repeats, yardstick_s=yardstick_s
        )
        (found,) = run_jobs([job], PassSamples, timeout_s)
        rows[model.name] = []
        for draft, passes in found.drafts.items():
            made = pass_rows(model, draft, load, passes, repeats, source)
            # Prefill and decoding of the target itself are timed element by element.
            rows[model.name] += [row for row in made if row.phase == "verify" or row.model != model.name]
    return [row for found_rows in rows.values() for row in found_rows]


def pass_rows(
    model: CausalLM, draft: str, load: TextWorkload, passes: dict[str, dict[int, float]], repeats: int, source: str
) -> list[Timing]:
    """Write what :func:`measure_passes` found as rows of a device's tables: of the target, and of the draft."""
    rows = []
    for side, whose in (("target", model), ("draft", draft_model(model, draft))):
        found, num_elements = passes[side], sum(layer.count for layer in whose.layers)
        common: dict[str, Any] = {"model": whose.name, "dtype": whose.dtype, "batch": load.batch, "unit": "ms"}
        common |= {"repeats": repeats, "source": source}

        def row(seconds: float, elements: int = 1, common: dict[str, Any] = common, **what: Any) -> Timing:
            values = [round(1e3 * seconds, 6), *[0.0] * (elements - 1)]
            return Timing(**common, elements=values, **what)

        prompt = load.prompt_tokens
        rows.append(row(found[-prompt], num_elements, phase="prefill", tokens=prompt, context=0))
        if side == "draft":
            rows.append(row(found[1], phase="verify", tokens=1, wake=round(1e3 * found[0], 6)))
            continue
        ends = sorted({prompt, prompt + max(load.new_tokens - 2, 0)})
        rows += [row(found[1], num_elements, phase="decode", tokens=1, context=end) for end in ends]
        lengths = sorted(count for count in found if count > 1)
        # The last token of a request is checked alone: after a rest, too, unlike the tokens of a target alone.
        rows += [row(found[max(count, lengths[0])], phase="verify", tokens=count) for count in (1, *lengths)]
    return rows
