"""Speculative decoding on emulated hosts: measured speed-up and draft length beside the planned ones.

    python tests/benchmarks/speculative.py [--quick] [--resume] [--write docs/measurements/llm.md]

For each setting (how slow the two devices are, the link's latency, which draft) the seconds of passes are measured in
this process and scaled; the plan is made from them and from the acceptance in the model's profile. Then one set of
processes makes texts with the planned length, its neighbours and the target alone by turns, on prompts that the
acceptance was not measured on, and every text is compared with the target's own. The prompts of a setting are a
balanced sample: of many draws the one whose rounds are on average most like those of all prompts. Needs root on Linux,
and eight minutes on two idle cores (``--quick``: two settings on a few prompts, whose figures mean nothing;
``--only 0,10``: some settings). Settings are kept in ``--folder`` as they are done: ``--resume`` goes on after an
interruption. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from edgeopt import planner
from edgeopt.costs.drafting import Expected
from edgeopt.executor.environment import worker_settings
from edgeopt.executor.netlab import missing
from edgeopt.executor.run import execute
from edgeopt.plan import Plan
from edgeopt.profiler.device import slowed
from edgeopt.profiler.drafts import pass_rows
from edgeopt.profiler.passes import measure_passes
from edgeopt.profiles import load_model
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import CausalLM
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import Problem, TextWorkload
from edgeopt.programs.speculative import library_model
from edgeopt.strategies.speculative import Speculative
from edgeopt.strategies.speculative_choice import Choice
from edgeopt.strategies.speculative_rounds import Rounds
from edgeopt.training.text.acceptance import greedy_marks
from edgeopt.training.text.checkpoints import NUM_PROMPTS
from edgeopt_solvers import Result, Status
from edgeopt_solvers.policy import StagedSolution
from tests.benchmarks.campaign.ledger import Ledger
from tests.benchmarks.campaign.turns import COMMAND, fresh_prompts
from tests.benchmarks.sections import made_by, write_section
from tests.benchmarks.speculative_page import NEW, PROMPT, decomposed, summary, table
from tests.benchmarks.strict import strict_json
from tests.benchmarks.trials import rested_messages_s

__all__ = [
    "FULL", "QUICK", "Effort", "Setting", "balanced", "between", "main", "played", "schedule", "settings",
]  # fmt: skip

LONGEST = 16
#: Lengths whose checks are timed; between them seconds are interpolated.
KNOTS = (1, 2, 4, 8, 12, 16)
LOAD = TextWorkload(prompt_tokens=PROMPT, new_tokens=NEW)
TITLE = "Speculative decoding"


@dataclass(frozen=True, slots=True)
class Setting:
    """Fractions of this machine's speed at which the devices compute, seconds of latency one way, and the draft."""

    draft_quota: float
    target_quota: float
    latency_s: float
    draft: str


@dataclass(frozen=True, slots=True)
class Effort:
    """Prompts that all lengths run on, and some of them the target alone and adaptive drafts; how far neighbours are.

    ``draws``: samples of prompts of which the most balanced one is run.
    """

    prompts: int
    alone: int
    adaptive: int
    reach: int
    repeats: int
    draws: int = 400


FULL, QUICK = Effort(12, 4, 4, 1, 5), Effort(4, 2, 1, 1, 2)


def settings(quick: bool) -> list[Setting]:
    """Twelve settings: two pairs of speeds, three latencies, two drafts."""
    everything = [
        Setting(a, b, latency, draft)
        for (a, b), latency, draft in product(((0.5, 0.1), (0.2, 0.2)), (0.0005, 0.005, 0.02), ("small", "medium"))
    ]
    return everything[:1] + everything[-1:] if quick else everything


def neighbours(length: int, effort: Effort) -> list[int]:
    """Lengths that are tried."""
    return list(range(max(1, length - effort.reach), min(LONGEST, length + effort.reach) + 1))


def schedule(length: int, rows: list[int], effort: Effort) -> list[list[int]]:
    """Turns of (length, row of prompts), mixed so that all see the same moods of the machine; see ``turns.py``."""
    lengths = neighbours(length, effort)
    turns = []
    for i, row in enumerate(rows):
        at = i % len(lengths)
        asked = [0] if i % (len(rows) // effort.alone) == 0 else []
        asked += lengths[at:] + lengths[:at]
        asked += [-length] if i % (len(rows) // effort.adaptive) == 0 else []
        turns += [[each, row] for each in asked]
    return turns


def balanced(marks: list[list[float]], lengths: list[int], effort: Effort, seed: int) -> list[int]:
    """Rows of the sample, of some drawn at random, whose rounds are most like those of all rows at every length.

    Luck with the prompts would otherwise be 4 to 5 % of a speed-up with as many prompts as there is time for.
    """
    rounds = [[played([row], length).rounds for row in marks] for length in lengths]
    means = [statistics.fmean(each) for each in rounds]
    rng = random.Random(seed)
    samples = [sorted(rng.sample(range(len(marks)), effort.prompts)) for _ in range(effort.draws)]

    def apart(sample: list[int]) -> float:
        found = (statistics.fmean(each[row] for row in sample) for each in rounds)
        return max(abs(one / mean - 1) for one, mean in zip(found, means, strict=True))

    return min(samples, key=apart)


def problem_of(setting: Setting, model: CausalLM, measured: dict[str, dict[int, float]]) -> Problem:
    """The phone owns the request and drafts; only the server may hold the target, which is not cut."""
    whole = model.model_copy(update={"drafts": {setting.draft: model.drafts[setting.draft]}})

    def device(name: str, quota: float, memory: float) -> Device:
        rows = pass_rows(whole, setting.draft, LOAD, measured, 20, "measured by tests/benchmarks/speculative.py")
        device = Device.model_validate(
            {
                "name": name, "source": "emulated", "compute": {"float32": 1e9}, "memory": memory,
                "memory_bandwidth": 1e10, "launch_overhead": 1e-6, "timings": rows,
                "efficiency": {"compute": 1.0, "memory_bandwidth": 1.0, "basis": "assumed"},
                "messages": {"each": 0.0, "per_mebibyte": 0.0, "rested": measured["messages"][0]},
                "runtime": {"threads": 1, "yardstick": measured["yardstick"][0]},
            }
        )  # fmt: skip
        return slowed(device, quota, name)

    network = {"rate": 12.5e6, "latency": setting.latency_s}
    return Problem.model_validate(
        {
            "name": "speculative", "model": whole, "strategy": "speculative",
            "workload": LOAD,
            "devices": [device("phone", setting.draft_quota, 1.2e6), device("server", setting.target_quota, 1e9)],
            "network": Network.model_validate({"name": "emulated", "source": "emulated", "default": network}),
            "constraints": {"drafting": {"max_length": LONGEST, "adaptive": True}, "max_stages": 1},
        }
    )  # fmt: skip


class Priced:
    """What lengths of drafts cost in one problem, with one device that drafts; length 0: nobody does."""

    def __init__(self, problem: Problem, drafts: int) -> None:
        self.problem, self.drafts = problem, drafts
        self.technique, self.rounds = Speculative(), Rounds(problem)
        self.instance = self.technique.build(problem)

    def _solution(self, length: int) -> StagedSolution:
        whole = (self.instance.num_elements,)
        return StagedSolution(0, self.drafts, length, whole, (1,)) if length else StagedSolution(-1, -1, 0, whole, (1,))

    def latency_s(self, length: int, counted: Expected | None = None) -> float:
        """Seconds of a request with the profile's acceptance, or with rounds that were counted."""
        return Choice(self.rounds, self.instance, self._solution(length), counted).latency_s

    def parts(self, length: int, counted: Expected | None = None) -> dict[str, float]:
        """Seconds of a request that are the draft's, the target's and neither's."""
        choice = Choice(self.rounds, self.instance, self._solution(length), counted)
        computing = [stage.compute_s for stage in choice.stages()]
        return _parts(choice.latency_s, computing)

    def plan(self, length: int, turns: list[list[int]], **decisions: Any) -> Plan:
        """Write down the plan of a length, to be run with other lengths by turns and with further decisions."""
        solution = self._solution(length)
        value = self.technique.evaluate(self.instance, solution).objective
        result = Result(Status("optimal", True), value, value, solution, "exact", 0.0)
        plan = self.technique.plan(self.problem, self.instance, result)
        return plan.model_copy(update={"decisions": {**plan.decisions, **decisions, "turns": turns}})


def expected_rounds(plan: Plan) -> float:
    """Rounds that a plan counts on."""
    return float(plan.metrics["rounds"])


def _parts(latency_s: float, computing: list[float]) -> dict[str, float]:
    *draft, target = computing
    return {"draft": sum(draft), "target": target, "messages": latency_s - sum(computing)}


def played(marks: list[list[float]], length: int) -> Expected:
    """Rounds that drafts of a length take along texts, on average.

    Parameters
    ----------
    marks
        For each text and each of its tokens, whether the draft guesses it; the first is the prefill's.
    """
    positions: dict[int, float] = {}
    drafted = 0
    for row in marks:
        place = 1
        while place < len(row):
            guesses = min(length, len(row) - place - 1)
            run = next((k for k in range(guesses) if not row[place + k]), guesses)
            positions[guesses + 1] = positions.get(guesses + 1, 0.0) + 1.0 / len(marks)
            drafted += guesses
            place += run + 1
    return Expected(sum(positions.values()), drafted / len(marks), positions)


def between(before: dict[str, dict[int, float]], after: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """Means of what was measured twice; what was measured once stays."""
    return {
        side: {count: (seconds + after.get(side, found)[count]) / 2 for count, seconds in found.items()}
        for side, found in before.items()
    }


def measure(
    setting: Setting, model: CausalLM, marks: list[list[float]], number: int, effort: Effort, on: str
) -> dict[str, Any]:
    """Plan and run one setting; ``marks`` are those of all prompts, see :func:`played`."""
    began = time.perf_counter()
    timing = {"pace": setting.target_quota, "repeats": effort.repeats}
    measured = measure_passes(model, setting.draft, LOAD, KNOTS, **timing)
    measured["messages"] = {0: rested_messages_s()}
    problem = problem_of(setting, model, measured)
    chosen = planner.solve(problem)
    length = int(chosen.decisions["draft_length"])  # type: ignore[arg-type]
    priced = Priced(problem, 1 if chosen.decisions["draft_device"] == "server" else 0)
    rows = balanced(marks, neighbours(length or 1, effort), effort, number)
    turns = schedule(length or 1, rows, effort)
    warm_up = [[max(length, 1), 0], [0, 0]]
    doubt = {key: value for key, value in chosen.decisions.items() if key == "stop_below"}
    carrier = priced.plan(max(each for each, _ in turns), warm_up + turns, **doubt)
    report = execute(
        carrier, on=on, repeat=len(turns), warmup=len(warm_up),
        timeout_s=400.0, _command=COMMAND,
    )  # fmt: skip
    # The machine's speed drifts: passes count as they are on average before and after the run; the plan is from before.
    again = measure_passes(model, setting.draft, LOAD, KNOTS, yardstick_s=measured["yardstick"][0], **timing)
    drift = statistics.fmean(again["target"][n] / seconds for n, seconds in measured["target"].items()) - 1
    priced = Priced(problem_of(setting, model, between(measured, again)), priced.drafts)
    by_length: dict[int, dict[int, float]] = {}
    for (each, row), seconds in zip(turns, report.latency_s.samples, strict=True):
        by_length.setdefault(each, {})[row] = seconds
    doubting = by_length.pop(-(length or 1))
    fixed_s = statistics.fmean(by_length[length or 1][row] for row in doubting)
    means = {each: statistics.fmean(found.values()) for each, found in by_length.items()}
    best = min(means, key=lambda each: means[each])
    here = [marks[row] for row in rows]
    # Some prompts are luckier for one length than for another: what that comes to is known, and taken off.
    luck = {
        e: priced.latency_s(e, played(here, e)) - priced.latency_s(e, played(marks, e)) if e else 0.0 for e in means
    }
    fair = {each: means[each] - luck[each] for each in means}
    at = [i for i, (each, _) in enumerate(turns) if each == length]
    computing = [statistics.fmean(stage.compute_s.samples[i] for i in at) for stage in report.stages]
    planned_s, alone_s = means[length], means[0]
    apart = [i for i, (each, _) in enumerate(turns) if each == 0]
    lone_s = statistics.fmean(report.stages[-1].compute_s.samples[i] for i in apart)
    counted_s = priced.latency_s(length, played(here, length)) if length else priced.latency_s(0)
    predicted, found = priced.latency_s(0) / priced.latency_s(length), alone_s / planned_s
    return {
        "setting": asdict(setting),
        "draft_device": chosen.decisions["draft_device"],
        "chosen": length,
        "best": best,
        "above_best": means[length] / means[best] - 1,
        "above_best_fair": fair[length] / min(fair.values()) - 1,
        "adaptive": statistics.fmean(doubting.values()) / fixed_s - 1,
        "speed_up": found,
        "predicted_speed_up": predicted,
        "error": predicted / found - 1,
        "counted_error": priced.latency_s(0) / counted_s / found - 1,
        "latency_error": priced.latency_s(length) / planned_s - 1,
        "alone_error": priced.latency_s(0) / alone_s - 1,
        "parts": _parts(planned_s, computing),
        "predicted_parts": priced.parts(length) if length else {},
        "counted_parts": priced.parts(length, played(here, length)) if length else {},
        "alone_parts": {"target": lone_s, "messages": alone_s - lone_s},
        "predicted_alone_parts": {k: v for k, v in priced.parts(0).items() if k != "draft"},
        "rounds": played(here, length).rounds if length else 0.0,
        "predicted_rounds": expected_rounds(chosen),
        "drift": drift,
        "planned_error": chosen.metrics["target_alone_s"] / chosen.latency_s / found - 1,
        "passes": {side: {str(count): seconds for count, seconds in found.items()} for side, found in measured.items()},
        "seconds": {str(each): seconds for each, seconds in sorted(means.items())},
        "predicted_s": {str(each): priced.latency_s(each) for each in sorted(means)},
        "luck_s": {str(each): seconds for each, seconds in sorted(luck.items())},
        "texts": len(turns),
        "equal": bool(report.output and report.output.equal),
        "wall_s": time.perf_counter() - began,
    }


def main() -> None:
    """Measure all settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two settings on a few prompts, to see that it works")
    parser.add_argument("--only", metavar="NUMBERS", help="settings to run, from 0 on, with commas between them")
    parser.add_argument("--on", choices=["emulated", "local"], default="emulated", help="launcher")
    parser.add_argument("--resume", action="store_true", help="keep the settings that the folder holds")
    parser.add_argument("--folder", type=Path, default=Path("build/speculative"), help="keeps settings that are done")
    parser.add_argument("--write", type=Path, metavar="FILE", help="page whose section is replaced")
    asked = parser.parse_args()
    if asked.on == "emulated" and (reason := missing()):
        raise SystemExit(f"no emulated hosts here: {reason}")
    if any(os.environ.get(name) != value for name, value in worker_settings(1).items()):
        # Passes are timed with the allocator and the threads that workers have; both are read at the start only.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **worker_settings(1)})
    torch.set_num_threads(1)
    model = load_model("text")
    assert isinstance(model, CausalLM)
    fresh = fresh_prompts(model, range(NUM_PROMPTS), PROMPT)

    effort, everything = QUICK if asked.quick else FULL, settings(asked.quick)
    if asked.only:
        everything = [everything[int(each)] for each in asked.only.split(",")]
    ledger = Ledger(asked.folder, {"effort": asdict(effort), "on": asked.on}, asked.resume)

    @cache
    def marks_of(draft: str) -> list[list[float]]:
        known = ledger.get("marks", draft)
        if known is None:
            marks = greedy_marks(library_model(model, None), library_model(model, draft), fresh, NEW).tolist()
            known = ledger.put("marks", draft, {"marks": marks})
        return known["marks"]

    for number, setting in enumerate(everything):
        key = json.dumps(asdict(setting))
        row = ledger.get("setting", key)
        if row is None:
            row = ledger.put("setting", key, measure(setting, model, marks_of(setting.draft), number, effort, asked.on))
        print(
            f"{number + 1} of {len(everything)}, {key}: length {row['chosen']} on {row['draft_device']}, best "
            f"{row['best']} (+{row['above_best']:.1%}), speed-up {row['speed_up']:.2f}, predicted "
            f"{row['predicted_speed_up']:.2f} ({row['error']:+.1%}, {row['counted_error']:+.1%}), "
            f"{row['wall_s']:.0f} s\n    {decomposed(row)}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    rows = [ledger.of("setting")[json.dumps(asdict(setting))] for setting in everything]
    if asked.write:
        made = made_by("python tests/benchmarks/speculative.py", quick=asked.quick, on="two cores of")
        write_section(asked.write, TITLE, [made, "", *table(rows)])
    print(strict_json({"benchmark": "speculative", "quick": asked.quick, **summary(rows), "rows": rows}))


if __name__ == "__main__":
    main()
