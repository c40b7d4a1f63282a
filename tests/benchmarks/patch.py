"""Patches in proportion to speed against equal ones, on two emulated hosts of which one has half the other's speed.

    python tests/benchmarks/patch.py [--quick] [--model demo-patch] [--rate "1 Gbit/s"] [--latency "0.2 ms"]
                                     [--write docs/measurements/diffusion.md]

Needs root on Linux and two idle cores, and takes about four minutes. This machine is measured first with one thread,
the denoiser's slabs included; the other device is the same at half its speed. Then both divisions are planned and
executed by turns, synchronously and with stale context. Without ``--model`` the denoiser is a transformer of width 768:
what patches exchange grows with its width, what they compute with the square of it, and real denoisers are wider still.
The last line is one JSON document: measured and predicted seconds, and how many times faster the planned division is
(the goal is 1.25).
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeopt.executor import execute
from edgeopt.plan import Plan
from edgeopt.profiler import profile_device
from edgeopt.profiler.architectures.family import Family, diffusion
from edgeopt.profiler.device import slowed
from edgeopt.profiles import load_model
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Diffusion
from edgeopt.profiles.problem import ImageWorkload, Problem
from edgeopt.strategies import get_strategy
from edgeopt_solvers import Result, Status, solve
from edgeopt_solvers.divisible import Divisible, Solution, evaluate
from tests.benchmarks.sections import made_by, table, write_section
from tests.benchmarks.trials import need_hosts, options, print_document, teller

SOURCE = "made by tests/benchmarks/patch.py"
SPEEDS = {"slow": 0.5, "fast": 1.0}
MODES = ("synchronous", "asynchronous")
SECTION = "Patches on unequal devices"
GOAL = 1.25
#: Width 768, that of DiT-B (DiT-XL has 1152); layers change nothing of what there is to compute for a byte.
LAYERS, HEADS, HEAD_WIDTH = 2, 12, 64

say = teller()


def wide_model() -> Diffusion:
    """Return the bundled model with a wider denoiser of fewer layers; weights are random."""
    narrow = load_model("demo-patch")
    assert isinstance(narrow, Diffusion)
    ((name, variant),) = narrow.variants.items()
    assert variant.architecture is not None
    change = {"num_layers": LAYERS, "num_attention_heads": HEADS, "attention_head_dim": HEAD_WIDTH}
    wide = variant.architecture.model_copy(update={"config": {**variant.architecture.config, **change}})
    family = Family(narrow.latent_shape, narrow.sampler, {name: wide}, dtype=narrow.dtype)
    return diffusion(family, name=f"wide-{HEADS * HEAD_WIDTH}", source=SOURCE)


def devices_of(model: Diffusion, steps: int, quick: bool) -> list[Device]:
    """Return this machine with one thread, measured with the model, and the same at other speeds."""
    whole = profile_device(
        "here", threads=1, models=[model], workloads=[ImageWorkload(steps=steps)], repeats=1 if quick else 2,
        processes=1 if quick else 2, progress=say, command="tests/benchmarks/patch.py", patches=True,
    )  # fmt: skip
    devices = [
        whole.model_copy(update={"name": name}) if speed == 1 else slowed(whole, speed, name)
        for name, speed in SPEEDS.items()
    ]
    return [device.model_copy(update={"memory": 4e9, "margin": None}) for device in devices]


def problem_of(model: Diffusion, devices: list[Device], steps: int, mode: str, rate: str, latency: str) -> Problem:
    """Return two devices that differ by their pace alone."""
    network = {"name": "wire", "source": SOURCE, "default": {"rate": rate, "latency": latency}}
    return Problem.model_validate(
        {
            "name": "patch-benchmark", "model": model, "strategy": "patch",
            "workload": {"kind": "image", "steps": steps}, "devices": devices, "network": network,
            "constraints": {"source": "fast", "patch": {"mode": mode, "warmup_steps": 2, "devices": list(SPEEDS)}},
        }
    )  # fmt: skip


def plans_of(problem: Problem) -> dict[str, Plan]:
    """Return the equal division and the planned one."""
    technique = get_strategy("patch")
    instance: Divisible = technique.build(problem)
    half = instance.num_units // 2
    equal = Solution((half, instance.num_units - half), (1.0, 1.0))
    value = evaluate(instance, equal)
    given = Result(Status("gap_reached", True), value.objective, 0.0, equal, "hand", 0.0, dict(value.metrics))
    return {
        "equal": technique.plan(problem, instance, given),
        "planned": technique.plan(problem, instance, solve(instance)),
    }


def by_turns(plans: dict[str, Plan], turns: int, repeat: int) -> dict[str, Any]:
    """Execute plans one after the other, several times over; the first time outputs are checked."""
    samples: dict[str, list[float]] = {name: [] for name in plans}
    computing: dict[str, list[list[float]]] = {name: [] for name in plans}
    equal: dict[str, bool] = {}
    for turn in range(turns):
        for name, plan in plans.items() if turn % 2 == 0 else reversed(plans.items()):
            report = execute(plan, on="emulated", repeat=repeat, warmup=1, timeout_s=600, check=turn == 0)
            if turn == 0:
                assert report.output is not None
                equal[name] = report.output.equal
            samples[name] += report.latency_s.samples
            computing[name].append([stage.compute_s.median for stage in report.stages])
            say(f"{name}: {report.latency_s.median:.3f} s, predicted {plan.latency_s:.3f} s")
    return {name: _row(plan, samples[name], computing[name], equal[name]) for name, plan in plans.items()}


def _row(plan: Plan, samples: list[float], computing: list[list[float]], equal: bool) -> dict[str, Any]:
    measured = statistics.median(samples)
    return {
        "rows": {stage.device: stage.stop - stage.start for stage in plan.stages},
        "predicted_s": plan.latency_s,
        "measured_s": measured,
        "range_s": [min(samples), max(samples)],
        "requests": len(samples),
        "relative_error": plan.latency_s / measured - 1,
        "predicted_compute_s": [stage.compute_s for stage in plan.stages],
        "measured_compute_s": [statistics.median(each) for each in zip(*computing, strict=True)],
        "equal": equal,
        "notes": plan.notes,
    }


def section(document: dict[str, Any]) -> list[str]:
    """Write the findings down."""
    gains, runs = document["times_faster"], document["runs"]
    lines = [
        f"Two devices of which one has half the other's speed, {document['rate']} and {document['latency']} between "
        f"them; `{document['model']}`, {document['steps']} steps of 48 rows, two of them synchronous where the others "
        f"are not; {runs['synchronous planned']['requests']} requests of each division, by turns. The planned division "
        f"is {gains['synchronous']:.2f}x as fast as equal patches in synchronous steps and "
        f"{gains['asynchronous']:.2f}x in asynchronous ones (goal {GOAL:g}x). Computing is that of all steps, slow "
        "device first, with the messages that come and go meanwhile.",
        "",
    ]
    heads = [
        "steps", "division", "rows, slow and fast", "predicted s", "measured s", "from, to", "error",
        "computing predicted s", "computing measured s",
    ]  # fmt: skip
    rows = [
        [
            *name.split(), f"{row['rows'].get('slow', 0)}, {row['rows'].get('fast', 0)}", f"{row['predicted_s']:.3f}",
            f"{row['measured_s']:.3f}", "{:.3f}, {:.3f}".format(*row["range_s"]), f"{row['relative_error']:+.1%}",
            *(", ".join(f"{each:.2f}" for each in row[f"{kind}_compute_s"]) for kind in ("predicted", "measured")),
        ]
        for name, row in runs.items()
    ]  # fmt: skip
    right = all(row["equal"] for row in runs.values())
    return [
        *lines,
        *table(heads, rows),
        "",
        f"Outputs {'are' if right else 'are NOT all'} those of one process, within the tolerance of sums.",
    ]


def main() -> None:
    """Measure, plan, execute, print."""
    parser = options(__doc__, "one repeat of four steps of demo-patch")
    parser.add_argument("--model", help="a bundled model with patches, demo-patch for one; default: a wider one")
    parser.add_argument("--turns", type=int, default=2, help="how often each division is executed")
    parser.add_argument("--repeat", type=int, default=3, help="requests of an execution")
    parser.add_argument("--rate", default="1 Gbit/s")
    parser.add_argument("--latency", default="0.2 ms")
    asked = parser.parse_args()
    need_hosts()
    started_s = time.perf_counter()
    name = asked.model or ("demo-patch" if asked.quick else None)
    model = load_model(name) if name else wide_model()
    assert isinstance(model, Diffusion)
    turns, repeat, steps = (1, 1, 4) if asked.quick else (asked.turns, asked.repeat, 12)
    devices = devices_of(model, steps, asked.quick)
    timed = {row.rows or "all": row.elements[0] for row in devices[-1].timings}
    document: dict[str, Any] = {
        "model": model.name, "steps": steps, "rate": asked.rate, "latency": asked.latency, "step_ms_by_rows": timed,
        "runs": {},
    }  # fmt: skip
    say(f"milliseconds of a step, by rows: {timed}")
    for mode in MODES:
        plans = plans_of(problem_of(model, devices, steps, mode, asked.rate, asked.latency))
        found = by_turns({f"{mode} {name}": plan for name, plan in plans.items()}, turns, repeat)
        document["runs"] |= found
    document["times_faster"] = {
        mode: document["runs"][f"{mode} equal"]["measured_s"] / document["runs"][f"{mode} planned"]["measured_s"]
        for mode in MODES
    }
    if asked.write:
        command = f"python tests/benchmarks/patch.py{f' --model {asked.model}' if asked.model else ''}"
        made = made_by(command, quick=asked.quick)
        write_section(asked.write, SECTION, [made, "", *section(document)])
    document["wall_s"] = round(time.perf_counter() - started_s, 1)
    print_document("patch", quick=asked.quick, **document)


if __name__ == "__main__":
    main()
