"""The sum over steps on trial: its order of plans that it never saw, and whether plans chosen by it keep a quality."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from edgeopt import planner
from edgeopt.errors import NoPlanError
from edgeopt.profiler.quality.family import calibration_plans, check_plans
from edgeopt.quality import rank_correlation
from tests.benchmarks.diffusion.bench import Bench, limited, runs, steps_of

__all__ = ["PART", "run", "section", "trial_plans"]

PART = "surrogate"

#: Variants by size: parameters 10 k, 59 k, 178 k, 393 k.
SIZES = ("small", "medium", "unet", "large")
#: Noise seed that the profile was measured with, and one that it never saw.
SEEDS = (0, 1)
#: Qualities asked for, different ones in each cluster, so that picks are different runs.
FLOORS = ((2.1, 2.3, 2.6, 3.2, 4.0), (2.2, 2.45, 2.8, 3.6, 5.0), (2.15, 2.35, 2.7, 3.0, 4.5))


def trial_plans(bench: Bench, each: int, seed: int = 2026) -> list[tuple[str, list[int]]]:
    """Draw runs of two and three stages, sizes rising and falling, none of which made or checked the profile."""
    best = int(np.argmin(bench.fit.loss.sum(axis=1)))
    count = len(bench.names)
    seen = {tuple(plan) for plan in calibration_plans(count, bench.steps, 4, best)}
    seen |= {tuple(plan) for plan in check_plans(count, bench.steps, 100, 0)}
    draw = np.random.default_rng(seed)
    found: list[tuple[str, list[int]]] = []
    for stages in (2, 3):
        for order in ("rising", "falling"):
            kind, made = f"{stages} stages, {order}", 0
            while made < each:
                sizes = sorted(draw.choice(len(SIZES), stages, replace=False), reverse=order == "falling")
                ends = [0, *sorted(draw.choice(np.arange(1, bench.steps), stages - 1, replace=False)), bench.steps]
                variants = [bench.names.index(SIZES[size]) for size in sizes]
                plan = runs([(v, int(b - a)) for v, (a, b) in zip(variants, pairwise(ends), strict=True)])
                if tuple(plan) not in seen:
                    seen.add(tuple(plan))
                    found.append((kind, plan))
                    made += 1
    return found


def _clusters(bench: Bench) -> list[tuple[str, Any]]:
    """The bundled problem, the same with other speeds, and with one device for everything."""
    problem = bench.problem()
    phone, tablet, desktop = problem.devices
    slow = [phone, tablet, desktop.model_copy(update={"compute": {"float32": desktop.compute["float32"] / 4}})]
    alone = [desktop.model_copy(update={"memory": 64 * 2**20})]
    network = problem.network
    far = network.model_copy(update={"default": network.default.model_copy(update={"rate": 1.25e6, "latency": 0.02})})
    return [
        ("bundled", problem),
        ("slower desktop, 10 Mbit/s", problem.model_copy(update={"devices": slow, "network": far})),
        ("one device", problem.model_copy(update={"devices": alone})),
    ]


def run(bench: Bench, say: Callable[[str], None]) -> dict[str, Any]:
    """Sample the trial's plans and the planner's picks."""
    rows = []
    trial = trial_plans(bench, 1 if bench.quick else 8)
    for number, (kind, plan) in enumerate(trial, start=1):
        row = {"kind": kind, "run": bench.spelled(plan), "predicted": bench.predicted(plan)}
        row["sampled"] = [bench.sampled(plan, seed) for seed in SEEDS[: 1 if bench.quick else 2]]
        rows.append(row)
        say(f"{number} of {len(trial)}: {row['run']}: {row['predicted']:.3f}, sampled {row['sampled'][0]:.3f}")
    picks = _picks(bench, say)
    predicted = [row["predicted"] for row in rows]
    return {
        "plans": len(rows),
        "spearman": rank_correlation(predicted, [row["sampled"][0] for row in rows]),
        "spearman_fresh_noise": rank_correlation(predicted, [row["sampled"][-1] for row in rows]),
        "relative_rms": float(np.sqrt(np.mean([(row["sampled"][0] / row["predicted"] - 1) ** 2 for row in rows]))),
        "margin": bench.profile.margin, "floor_of_real": bench.reference.floor.frechet, "images": bench.images,
        "picks": len(picks), "distinct": len({pick["run"] for pick in picks}),
        "met": sum(pick["sampled"][0] <= pick["asked"] for pick in picks),
        "met_fresh_noise": sum(pick["sampled"][-1] <= pick["asked"] for pick in picks),
        "met_without_margin": sum(pick["bare"][0] <= pick["asked"] for pick in picks),
        "met_without_margin_fresh_noise": sum(pick["bare"][-1] <= pick["asked"] for pick in picks),
        "latency_price": float(np.mean([pick["latency_s"] / pick["bare_latency_s"] - 1 for pick in picks])),
        "rows": rows, "chosen": picks,
    }  # fmt: skip


def _picks(bench: Bench, say: Callable[[str], None]) -> list[dict[str, Any]]:
    seeds = SEEDS[: 1 if bench.quick else 2]
    picks = []
    for (name, problem), floors in list(zip(_clusters(bench), FLOORS, strict=True))[: 1 if bench.quick else None]:
        for floor in floors[: 1 if bench.quick else None]:
            asked = limited(problem, quality=floor)
            try:
                plan, bare = planner.solve(asked), planner.solve(bench.without_margin(asked))
            except NoPlanError as error:
                say(f"{name}, {floor}: {error}")
                continue
            run, other = steps_of(plan), steps_of(bare)
            picks.append(
                {
                    "cluster": name, "asked": floor, "run": bench.spelled(run), "latency_s": plan.latency_s,
                    "predicted": plan.quality, "sampled": [bench.sampled(run, seed) for seed in seeds],
                    "bare_run": bench.spelled(other), "bare": [bench.sampled(other, seed) for seed in seeds],
                    "bare_latency_s": bare.latency_s,
                }
            )  # fmt: skip
            say(f"{name}, at most {floor}: {bench.spelled(run)}: sampled {picks[-1]['sampled'][0]:.3f}")
    return picks


def section(found: dict[str, Any]) -> list[str]:
    """Write the findings down."""
    lines = [
        f"{found['plans']} plans of the digits family, drawn apart from those that made the profile; {found['images']} "
        f"images against as many held-out digits, Fréchet distance (real against real: {found['floor_of_real']:.3f}). "
        "Sampled from the noise that the profile was measured with, and from noise that it never saw.",
        "",
        "| figure | goal | profile's noise | fresh noise |",
        "|---|---|---|---|",
        f"| Spearman, surrogate and sampled | 0.9 | {found['spearman']:.3f} | {found['spearman_fresh_noise']:.3f} |",
        f"| plans picked under a quality that keep it | 9 of 10 | {found['met']} of {found['picks']} | "
        f"{found['met_fresh_noise']} of {found['picks']} |",
        f"| the same without a margin | – | {found['met_without_margin']} of {found['picks']} | "
        f"{found['met_without_margin_fresh_noise']} of {found['picks']} |",
        "",
        f"Root mean square of sampled / predicted − 1: {found['relative_rms']:.1%}. The profile's margin is "
        f"{found['margin'] or 0:.1%}; it costs {found['latency_price']:.1%} of latency on average. Of the picks "
        f"{found['distinct']} are different runs.",
        "",
        "| picked for | at most | plan | predicted | sampled | fresh noise | without margin | sampled | fresh noise |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for pick in found["chosen"]:
        lines.append(
            f"| {pick['cluster']} | {pick['asked']} | {pick['run']} | {pick['predicted']:.3f} | "
            f"{pick['sampled'][0]:.3f} | {pick['sampled'][-1]:.3f} | {pick['bare_run']} | {pick['bare'][0]:.3f} | "
            f"{pick['bare'][-1]:.3f} |"
        )
    lines += ["", "| plan | kind | predicted | sampled | fresh noise |", "|---|---|---|---|---|"]
    for row in sorted(found["rows"], key=lambda row: row["sampled"][0]):
        first, fresh = row["sampled"][0], row["sampled"][-1]
        lines.append(f"| {row['run']} | {row['kind']} | {row['predicted']:.3f} | {first:.3f} | {fresh:.3f} |")
    return lines
