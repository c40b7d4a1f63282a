"""Pipelines of small language models on trial: time to the first token and per later token, predicted and measured.

    python tests/benchmarks/llm_pipeline.py [--quick] [--resume] [--write docs/measurements/llm.md]

Twenty plans on emulated hosts: models in the style of Llama, Qwen and Mixtral with random weights, 2 to 4 devices whose
speeds differ up to four times, drawn links of 10 to 1000 Mbit/s and 1 to 50 ms, one sequence or four at a time, greedy
and sampled. Half of the plans are the planner's, the others are drawn. The request is timed by a process of its own
right before its plan is made, since a virtual machine is not as fast at one minute as at the next: how far apart two
such timings of one request are is printed beside the errors. Tokens are compared with those of one process.

Needs root on Linux, and ten minutes on two idle cores (``--quick``: two plans, which shows that it works and no more).
What is found is kept in ``--folder``, so that ``--resume`` goes on. The last line is one JSON document.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeopt.executor import execute
from edgeopt.plan import Plan
from edgeopt.profiler.architectures.language import causal_lm
from edgeopt.profiles.device import Device
from edgeopt.profiles.model import Architecture, CausalLM
from edgeopt.profiles.problem import TextWorkload
from edgeopt.report.data import Report
from tests.benchmarks.campaign.draws import draw_plan, draw_problem, measured_devices, timed_again
from tests.benchmarks.campaign.ledger import Ledger
from tests.benchmarks.campaign.predict import solved
from tests.benchmarks.sections import made_by, table, write_section
from tests.benchmarks.trials import need_hosts, options, print_document, teller

__all__ = ["METRICS", "STYLES", "cases_of", "model_of", "plan_of", "section", "summary"]

TITLE = "Pipeline"
#: Requests as they are profiled: sequences at a time, and the prompt's tokens.
LOADS = ((1, 64), (4, 32))
NEW_TOKENS, TEMPERATURES = 12, (0.0, 0.8)
METRICS = {"ttft_s": "time to first token", "tpot_s": "time per later token"}
#: Of a median absolute error.
GOAL = 0.05
_COMMAND = "tests/benchmarks/llm_pipeline.py"

_COMMON = {
    "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 512, "head_dim": 64, "bos_token_id": None,
    "eos_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
STYLES: dict[str, dict[str, Any]] = {
    "Llama": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10, "num_attention_heads": 10,
              "num_key_value_heads": 5},
    "Qwen3": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8,
              "tie_word_embeddings": True},
    "Mixtral": {"hidden_size": 512, "intermediate_size": 896, "num_hidden_layers": 6, "num_attention_heads": 8,
                "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}  # fmt: skip


def model_of(style: str) -> CausalLM:
    """Derive the profile of a small model of a style; its weights are random."""
    config = {**_COMMON, **STYLES[style]}
    architecture = Architecture(library="transformers", class_name=f"{style}ForCausalLM", config=config, seed=1)
    return causal_lm(architecture, name=f"small-{style.lower()}", source="made up for a campaign", dtype="float32")


def cases_of(models: dict[str, CausalLM], seed: int, count: int) -> list[tuple[str, CausalLM, TextWorkload, int]]:
    """Key, model, request and seed of the draw of every plan; models take turns, then sizes of batches."""
    cases = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        batch, prompt = LOADS[index // len(models) % len(LOADS)]
        load = TextWorkload(
            prompt_tokens=prompt, batch=batch, new_tokens=int(rng.integers(6, NEW_TOKENS + 1)),
            temperature=float(rng.choice(TEMPERATURES)),
        )  # fmt: skip
        cases.append((f"p{index}", list(models.values())[index % len(models)], load, seed + index))
    return cases


def plan_of(key: str, model: CausalLM, load: TextWorkload, seed: int, devices: list[Device]) -> Plan:
    """Draw a cluster; every second plan is the planner's, the others are drawn."""
    for number in range(100):
        rng = np.random.default_rng([seed, number])
        problem = draw_problem(rng, key, "pipeline", model, lambda _: load, devices, most=4)
        plan = draw_plan(rng, problem) if int(key[1:]) % 2 else solved(problem)
        if plan is not None:
            return plan
    raise RuntimeError(f"{key}: none of 100 drawn clusters holds {model.name!r}")


def run(ledger: Ledger, quick: bool, seed: int, say) -> None:
    """Profile, plan and run, plan by plan."""
    models = {style: model_of(style) for style in list(STYLES)[: 1 if quick else None]}
    cases = cases_of(models, seed, 2 if quick else 20)
    found = ledger.get("profile", "machine")
    if found is None:
        found = measured_devices(1, 1, say, [], _COMMAND)[0].model_dump(mode="json", by_alias=True)
        ledger.put("profile", "machine", found)
    whole = Device.model_validate(found)
    for number, (key, model, load, draw) in enumerate(cases, start=1):
        if ledger.get("runs", key) is not None:
            continue
        longest = load.model_copy(update={"new_tokens": NEW_TOKENS, "temperature": 0.0})
        devices = timed_again(whole, model, longest, 1 if quick else 3, _COMMAND)
        plan = plan_of(key, model, load, draw, devices)
        say(f"{number} of {len(cases)}: {model.name}, {len(plan.stages)} stages, {plan.latency_s:.3g} s predicted")
        report = execute(plan, on="emulated", repeat=2 if quick else 5, warmup=1, check=True, timeout_s=180.0)
        ledger.put("runs", key, _row(plan, report, devices[0]))


def _row(plan: Plan, report: Report, whole: Device) -> dict[str, Any]:
    load = plan.problem.workload
    assert isinstance(load, TextWorkload)
    assert report.output is not None
    later_s = [sum(row.elements) for row in whole.timings if row.phase == "decode"]
    return {
        "model": plan.problem.model.name, "chosen": plan.backend != "drawn", "stages": len(plan.stages),
        "devices": len(plan.problem.devices), "batch": load.batch, "temperature": load.temperature,
        "equal": report.output.equal and report.output.kind == "tokens" and report.output.repeats_equal,
        "predicted": {name: plan.metrics[name] for name in METRICS},
        "samples": {name: report.metrics[name].samples for name in METRICS},
        "timed_s": statistics.fmean(later_s),
    }  # fmt: skip


def _error(row: dict[str, Any], metric: str) -> float:
    return row["predicted"][metric] / statistics.median(row["samples"][metric]) - 1


def _figures(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, float]:
    errors = [_error(row, metric) for row in rows]
    return {
        "error_median": statistics.median(map(abs, errors)), "error_p90": float(np.quantile(np.abs(errors), 0.9)),
        "error_worst": max(map(abs, errors)), "signed_median": statistics.median(errors),
    }  # fmt: skip


def summary(ledger: Ledger) -> dict[str, Any]:
    """Errors of both metrics: of all plans, by model, by batch; and how many plans made the tokens of one process."""
    rows = list(ledger.of("runs").values())
    groups = {
        **{name: [r for r in rows if r["model"] == name] for name in sorted({r["model"] for r in rows})},
        **{f"batch {size}": [r for r in rows if r["batch"] == size] for size in sorted({r["batch"] for r in rows})},
    }
    return {
        "plans": len(rows), "equal": sum(row["equal"] for row in rows), "drift": _drift(rows),
        "sampled": sum(row["temperature"] > 0 for row in rows),
        "reached": all(_figures(rows, metric)["error_median"] <= GOAL for metric in METRICS),
        **{metric: _figures(rows, metric) for metric in METRICS},
        "groups": {
            name: {"plans": len(own), **{metric: _figures(own, metric)["error_median"] for metric in METRICS}}
            for name, own in groups.items()
        },
    }  # fmt: skip


def _drift(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How far apart the timings of one request are, minutes apart: relative to the one before, median and most."""
    apart = [0.0]
    for name, batch in {(row["model"], row["batch"]) for row in rows}:
        timed = [row["timed_s"] for row in rows if (row["model"], row["batch"]) == (name, batch)]
        apart += [abs(after / before - 1) for before, after in pairwise(timed)]
    return {"median": statistics.median(apart[1:] or apart), "most": max(apart)}


def section(ledger: Ledger, found: dict[str, Any]) -> list[str]:
    """Return the section's text: goals, groups, all plans."""
    lines = [
        f"{found['plans']} plans of small models with random weights in the style of Llama, Qwen and Mixtral, on",
        "emulated hosts: 2 to 4 devices whose speeds",
        "differ up to 4 times, links of 10 to 1000 Mbit/s and 1 to 50 ms, one sequence at a time or four, greedy or "
        f"sampled ({found['sampled']}). Plans in bold are the planner's, the others were drawn. The request was timed "
        "by one process right before its plan was made; measured is the median of five requests. Two such timings of "
        f"one request, some minutes apart, differ by {found['drift']['median']:.1%} (median; at most "
        f"{found['drift']['most']:.1%}): the machine itself is not steadier than that.",
        "",
        f"Tokens equal to those of one process, by `generate` of transformers: {found['equal']} of {found['plans']}.",
    ]
    goals = [
        [name, f"{GOAL:.0%}", *(f"{found[metric][f'error_{key}']:.1%}" for key in ("median", "p90", "worst")),
         f"{found[metric]['signed_median']:+.1%}"]
        for metric, name in METRICS.items()
    ]  # fmt: skip
    groups = [
        [name, own["plans"], *(f"{own[metric]:.1%}" for metric in METRICS)] for name, own in found["groups"].items()
    ]
    plans = []
    for key, row in ledger.of("runs").items():
        cells = [f"**{key}**" if row["chosen"] else key, row["model"], row["stages"], row["batch"]]
        for metric in METRICS:
            measured = statistics.median(row["samples"][metric])
            cells += [f"{1e3 * row['predicted'][metric]:.1f}, {1e3 * measured:.1f}", f"{_error(row, metric):+.1%}"]
        plans.append(cells)
    error = "absolute error of the prediction"
    tables = (
        table([error, "goal", "median", "90th percentile", "worst", "signed median"], goals),
        table(["median by group", "plans", *METRICS.values()], groups),
        table(
            [
                "plan", "model", "stages", "batch", "first token: predicted, measured ms", "error",
                "later token: predicted, measured ms", "error",
            ],
            plans,
        ),
    )  # fmt: skip
    return [*lines, *(line for each in tables for line in ("", *each))]


def main() -> None:
    """Run the campaign, print the summary, write the section."""
    parser = options(__doc__, "two plans of one model", folder="llm-pipeline")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    need_hosts()
    ledger = Ledger(asked.folder, {"quick": asked.quick, "seed": asked.seed}, asked.resume)
    begun = time.perf_counter()
    run(ledger, asked.quick, asked.seed, teller())
    found = summary(ledger)
    if asked.write:
        made = made_by("python tests/benchmarks/llm_pipeline.py", quick=asked.quick, on="two cores of")
        write_section(asked.write, TITLE, [made, "", *section(ledger, found)])
    print_document("llm_pipeline", quick=asked.quick, seconds=round(time.perf_counter() - begun, 1), **found)


if __name__ == "__main__":
    main()
