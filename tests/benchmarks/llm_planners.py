"""Our plan beside what other tools would do with the same language model and devices, on one evaluator.

    python tests/benchmarks/llm_planners.py [--quick] [--execute [--resume]] [--write docs/measurements/llm.md]

Clusters of 2 to 5 devices with speeds 1 to 8 times apart and links of 10 to 1000 Mbit/s run Llama 3.1 8B and Qwen2.5
14B by the library's profiles. Every planner sees what its tool looks at (``baselines.py``); one evaluator prices all
plans, and a plan that does not fit into memory counts as that and not as slow. ``--execute`` runs plans of the
demonstration model on emulated hosts, needs root on Linux and takes about five minutes on two idle cores (``--quick``:
one); runs are kept in ``--folder`` as they are done, and ``--resume`` goes on after an interruption. The last line is
one JSON document, ``null`` where nothing was run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeopt import planner
from edgeopt.profiles import load_model
from edgeopt.profiles.device import Device
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import Constraints, Problem, TextWorkload
from edgeopt.strategies import get_strategy
from edgeopt_solvers import solve
from edgeopt_solvers.chain import Chain, Solution, evaluate
from tests.benchmarks.baselines import BASELINES
from tests.benchmarks.campaign.ledger import Ledger
from tests.benchmarks.sections import made_by, table, write_section
from tests.benchmarks.trials import need_hosts, options, print_document, teller

__all__ = ["MODELS", "PLANNERS", "RATES", "RATIOS", "Row", "compare", "draw_problem", "section", "summary"]

MODELS = ("llama-3.1-8b", "qwen2.5-14b")
#: How many times faster the fastest device is than the slowest.
RATIOS = (1.0, 2.0, 3.0, 5.0, 8.0)
#: Mbit/s of every link of a cluster.
RATES = (10.0, 30.0, 100.0, 300.0, 1000.0)
#: Tools' rules, by the names of ``baselines.py``; the first three are held against the factor below.
PLANNERS = ("memory_proportional", "greedy_bytes", "equal_split", "halda", "random_best")
FIRST, FACTOR, HARD_RATIO, HARD_RATE = PLANNERS[:3], 1.3, 3.0, 100.0

TITLE = "Against other planners"

_MBIT = 1e6 / 8


@dataclass(frozen=True)
class Row:
    """One cluster: seconds of our plan, its proven bound, and of every planner's (``None``: it does not fit)."""

    model: str
    ratio: float
    rate: float
    devices: int
    ours_s: float
    bound_s: float
    planners_s: dict[str, float | None]

    @property
    def is_hard(self) -> bool:
        """Whether speeds are far apart or links slow."""
        return self.ratio >= HARD_RATIO or self.rate <= HARD_RATE


def draw_problem(rng: np.random.Generator, model_name: str, ratio: float, rate: float) -> Problem:
    """Draw 2 to 5 devices whose memory together is 1.3 to 2.5 times the weights, in any order, and a request.

    The fastest one reads 400 GB/s and computes 40 TFLOP/s, the slowest a ``ratio``-th of both; memory does not follow
    speed. The first device is the source.
    """
    model = load_model(model_name)
    weights = sum(layer.count * layer.weights for layer in model.layers)
    count = int(rng.integers(2, 6))
    slowness = ratio ** np.concatenate([[0.0, 1.0], rng.uniform(0, 1, count - 2)])
    shares = rng.uniform(0.4, 1.0, count)
    memory = weights * rng.uniform(1.3, 2.5) * shares / shares.sum()
    devices = [
        Device.model_validate(
            {
                "name": f"device-{i}", "source": "drawn for a comparison of planners",
                "compute": {"bfloat16": 40e12 / slowness[k]}, "memory_bandwidth": 400e9 / slowness[k],
                "memory": float(memory[k]), "launch_overhead": 1e-5,
                "efficiency": {"compute": 0.5, "memory_bandwidth": 0.8, "basis": "assumed"},
            }
        )
        for i, k in enumerate(rng.permutation(count))
    ]  # fmt: skip
    latency = float(np.exp(rng.uniform(np.log(0.3e-3), np.log(5e-3))))
    network = Network.model_validate(
        {"name": "drawn", "source": "drawn", "default": {"rate": rate * _MBIT, "latency": latency}}
    )
    load = TextWorkload(prompt_tokens=int(rng.choice([64, 256, 1024])), new_tokens=int(rng.choice([32, 128])))
    return Problem(
        name=f"{model_name} {ratio:g}x {rate:g} Mbit/s", model=model, strategy="pipeline", workload=load,
        devices=devices, network=network, constraints=Constraints(source=devices[0].name),
    )  # fmt: skip


def solutions_of(chain: Chain) -> dict[str, Solution | None]:
    """Return what every planner decides; ``None`` where it finds nothing, or nothing that keeps to the memories."""
    decided = {name: BASELINES[name](chain) for name in PLANNERS}
    return {
        name: None if solution is None or evaluate(chain, solution).violations else solution
        for name, solution in decided.items()
    }


def compare(problem: Problem, ratio: float, rate: float, time_limit_s: float = 60.0) -> Row | None:
    """Price every planner's decisions and ours by the same evaluator; ``None`` where no plan exists at all."""
    chain = get_strategy("pipeline").build(problem)
    result = solve(chain, time_limit_s=time_limit_s, diagnose=False)
    if result.solution is None:
        return None
    return Row(
        problem.model.name, ratio, rate, chain.num_devices, evaluate(chain, result.solution).objective, result.bound,
        {
            name: None if solution is None else evaluate(chain, solution).objective
            for name, solution in solutions_of(chain).items()
        },
    )  # fmt: skip


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    """Ratios of every planner's latency to ours: on all clusters, where speeds are far apart, where links are slow."""
    rows = list(rows)
    groups = {
        "all": rows, "hard": [row for row in rows if row.is_hard],
        "apart": [row for row in rows if row.ratio >= HARD_RATIO],
        "slow": [row for row in rows if row.rate <= HARD_RATE],
    }  # fmt: skip
    planners = {
        name: {group: _ratios([row for row in some if row.planners_s[name] is not None], name)
               for group, some in groups.items()}
        for name in PLANNERS
    }  # fmt: skip
    least = [found["all"]["least"] for found in planners.values() if found["all"]["clusters"]]
    return {
        "clusters": {group: len(some) for group, some in groups.items()},
        "gap_worst": max((row.ours_s / row.bound_s - 1 for row in rows), default=None),
        "never_slower": bool(least) and min(least) >= 1 - 1e-9,
        "first_three_at_least_factor": all(
            planners[name]["hard"]["at_least_factor"] == 1.0 for name in FIRST
        ),
        "planners": planners,
    }  # fmt: skip


def _ratios(rows: list[Row], name: str) -> dict[str, Any]:
    """Least, median and most of a planner's latency over ours, and how often it is the factor or more."""
    ratios = [row.planners_s[name] / row.ours_s for row in rows]
    if not ratios:
        return {"clusters": 0}
    return {
        "clusters": len(ratios), "least": min(ratios), "median": statistics.median(ratios), "most": max(ratios),
        "mean": statistics.geometric_mean(ratios),
        "at_least_factor": sum(ratio >= FACTOR for ratio in ratios) / len(ratios),
    }  # fmt: skip


def show(rows: list[Row]) -> None:
    """Print medians by ratio of speeds and by rate."""
    print(f"{'clusters':<22}{'n':>5}" + "".join(f"{name:>21}" for name in PLANNERS))
    for title, key, values in (("speeds {:g}x", "ratio", RATIOS), ("{:g} Mbit/s", "rate", RATES)):
        for value in values:
            some = [row for row in rows if getattr(row, key) == value]
            cells = []
            for name in PLANNERS:
                times = [row.planners_s[name] / row.ours_s for row in some if row.planners_s[name] is not None]
                cells.append(f"{statistics.median(times):.2f} ({len(times)} fit)" if times else "none fits")
            print(f"{title.format(value):<22}{len(some):>5}" + "".join(f"{cell:>21}" for cell in cells))


def execute_all(quick: bool, ledger: Ledger) -> dict[str, Any]:
    """Run every planner's plan of the demonstration model on emulated hosts with speeds up to 4 times apart."""
    from edgeopt.executor import execute
    from tests.benchmarks.campaign.draws import measured_devices, priced

    say, known = teller(), ledger.get("devices", "all")
    if known is None:
        runs = [(load_model("demo-llm"), _LOAD)]
        devices = measured_devices(1 if quick else 3, 1 if quick else 2, say, runs, "tests/benchmarks/llm_planners.py")
        known = ledger.put("devices", "all", {d.name: d.model_dump(mode="json", by_alias=True) for d in devices})
    clusters = []
    for number, (rate, names) in enumerate(_EXECUTED[: 1 if quick else None]):
        problem = _tiny_problem(number, rate, [Device.model_validate(known[name]) for name in names])
        plans = {"ours": planner.solve(problem, time_limit_s=60.0)}
        decided = solutions_of(get_strategy("pipeline").build(problem))
        plans |= {name: priced(problem, s) for name, s in decided.items() if s is not None}
        samples: dict[str, list[float]] = {name: [] for name in plans}
        for turn in range(1 if quick else 2):  # the machine is not always in the same mood
            runs: dict[Any, dict[str, Any]] = {}
            for name, plan in plans.items():
                same = (tuple(plan.cuts), tuple(plan.devices))  # what several planners decide is run once
                key = f"{number}-{name}-{turn}"
                run = ledger.get("run", key) or runs.get(same)
                if run is None:
                    say(f"{rate:g} Mbit/s, {name}: {len(plan.stages)} stages, {plan.latency_s:.3g} s predicted")
                    check = name == "ours" and turn == 0
                    report = execute(plan, on="emulated", repeat=3, warmup=1, check=check, timeout_s=180.0)
                    run = {"samples": report.latency_s.samples, "equal": bool(report.output and report.output.equal)}
                runs[same] = ledger.put("run", key, run)
                samples[name] += run["samples"]
        measured = {name: statistics.median(found) for name, found in samples.items()}
        clusters.append(
            {
                "rate_mbit_per_s": rate, "devices": names, "measured_s": measured,
                "predicted_s": {name: plan.latency_s for name, plan in plans.items()},
                "equal": ledger.of("run")[f"{number}-ours-0"]["equal"],
            }
        )  # fmt: skip
    ratios = {
        name: [c["measured_s"][name] / c["measured_s"]["ours"] for c in clusters if name in c["measured_s"]]
        for name in PLANNERS
    }
    least = {name: min(each) for name, each in ratios.items() if each}
    return {"clusters": clusters, "least": least, "never_slower": bool(least) and min(least.values()) >= 1.0}


def section(found: dict[str, Any], executed: dict[str, Any] | None) -> list[str]:
    """Markdown: ratios by the evaluator, then what was run."""
    counts = found["clusters"]
    lines = [
        f"Llama 3.1 8B and Qwen2.5 14B on {counts['all']} drawn clusters of 2 to 5 devices, one evaluator for all: "
        f"a planner's latency over ours, where its plan fits into memory. Hard clusters ({counts['hard']}) have speeds "
        f"{HARD_RATIO:g} times apart or more, or links of {HARD_RATE:g} Mbit/s or less. The largest gap between ours "
        f"and its proven bound is {found['gap_worst']:.1e}.",
        "",
    ]
    heads = ["planner", "fits", "least", "median", "most", "hard: least", "median", f"at least {FACTOR:g}"]
    rows = []
    for name, groups in found["planners"].items():
        every, hard = groups["all"], groups["hard"]
        if not every["clusters"] or not hard["clusters"]:
            rows.append([_words(name), every["clusters"], *[""] * 6])
            continue
        rows.append(
            [
                _words(name), f"{every['clusters']} of {counts['all']}", f"{every['least']:.3f}",
                f"{every['median']:.2f}", f"{every['most']:.1f}", f"{hard['least']:.3f}", f"{hard['median']:.2f}",
                f"{hard['at_least_factor']:.0%}",
            ]
        )  # fmt: skip
    lines += table(heads, rows)
    if executed is None:
        return [*lines, "", "Nothing was run."]
    lines += [
        "",
        "The demonstration model on emulated hosts, measured seconds of a request (in brackets over ours); a dash: the "
        "planner's plan does not fit. What several planners decide is run once, all in two turns; our tokens are those "
        "of one process"
        f"{'' if all(c['equal'] for c in executed['clusters']) else ' NOT EVERYWHERE'}.",
        "",
    ]
    rows = []
    for cluster in executed["clusters"]:
        measured = cluster["measured_s"]
        cells = [
            f"{measured[name]:.2f} ({measured[name] / measured['ours']:.2f})" if name in measured else "–"
            for name in PLANNERS
        ]
        speeds = ", ".join(f"{name.split('-')[1]}%" for name in cluster["devices"])
        where = f"{cluster['rate_mbit_per_s']:g} Mbit/s, {speeds}"
        rows.append([where, f"{measured['ours']:.2f}", *cells])
    return [*lines, *table(["links, devices", "ours", *map(_words, PLANNERS)], rows)]


def _words(name: str) -> str:
    """What the page calls a planner."""
    return {
        "memory_proportional": "memory-proportional (exo)", "greedy_bytes": "greedy by bytes (accelerate)",
        "equal_split": "equal split (transformers)", "halda": "HALDA", "random_best": "best of 200 random",
    }[name]  # fmt: skip


#: What is run.
_LOAD = TextWorkload(prompt_tokens=64, new_tokens=12)
#: Mbit/s and devices, the source first: fractions of this machine's speed, in percent.
_EXECUTED = (
    (100.0, ("speed-100", "speed-25", "speed-35")),
    (10.0, ("speed-35", "speed-100")),
    (1000.0, ("speed-25", "speed-60", "speed-100")),
)


def _tiny_problem(number: int, rate: float, devices: list[Device]) -> Problem:
    """Return the demonstration model on devices each of which holds three quarters of it."""
    model = load_model("demo-llm")
    room = 0.75 * sum(layer.count * layer.weights for layer in model.layers)
    network = Network.model_validate(
        {"name": f"emulated-{number}", "source": "made for a run", "default": {"rate": rate * _MBIT, "latency": 2e-3}}
    )
    return Problem(
        name=f"tiny-{number}", model=model, strategy="pipeline", network=network,
        workload=_LOAD, constraints=Constraints(source=devices[0].name),
        devices=[device.model_copy(update={"memory": room, "margin": None}) for device in devices],
    )  # fmt: skip


def main() -> None:
    """Draw, compare, print, and run if asked."""
    parser = options(__doc__, "a cluster for each rate and ratio, one model in turn", folder="llm")
    parser.add_argument("--seeds", type=int, default=4, help="clusters for each model, ratio and rate")
    parser.add_argument("--execute", action="store_true", help="run tiny versions on emulated hosts")
    asked = parser.parse_args()
    begun, used = time.perf_counter(), time.process_time()
    cells = [(model, ratio, rate) for ratio in RATIOS for rate in RATES for model in MODELS]
    rows = []
    for number, (model, ratio, rate) in enumerate(cells):
        if asked.quick and number % 3:
            continue
        for seed in range(1 if asked.quick else asked.seeds):
            rng = np.random.default_rng([number, seed])
            if row := compare(draw_problem(rng, model, ratio, rate), ratio, rate):
                rows.append(row)
    show(rows)
    executed = None
    if asked.execute:
        need_hosts()
        ledger = Ledger(asked.folder, {"quick": asked.quick}, asked.resume)
        executed = execute_all(asked.quick, ledger)
    found = summary(rows)
    if asked.write:
        command = f"python tests/benchmarks/llm_planners.py{' --execute' * asked.execute}"
        write_section(asked.write, TITLE, [made_by(command, quick=asked.quick), "", *section(found, executed)])
    print_document(
        "llm_planners", quick=asked.quick, wall_s=time.perf_counter() - begun, processor_s=time.process_time() - used,
        predicted=found, executed=executed,
    )  # fmt: skip


if __name__ == "__main__":
    main()
