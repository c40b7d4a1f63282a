"""Pipelines of small language models on trial: time to the first token and per later token, predicted and measured.

    python tests/benchmarks/llm_pipeline.py [--quick] [--resume] [--write docs/measurements/llm.md]

Twenty plans on emulated hosts: models in the style of Llama, Qwen and Mixtral with random weights, 2 to 4 devices whose
speeds differ up to four times, drawn links of 10 to 1000 Mbit/s and 1 to 50 ms, one sequence or four at a time, greedy
and sampled. Half of the plans are the planner's, the others are drawn. Devices are profiled once, before any plan is
made, and every plan runs in two turns with new processes; in the first, tokens are compared with those of one process.

Needs root on Linux, and ten minutes on two idle cores (``--quick``: two plans, one turn, which shows that it works and
no more). What is found is kept in ``--folder``, so that ``--resume`` goes on. The last line is one JSON document.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
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
from tests.benchmarks.campaign.draws import draw_plan, draw_problem, measured_devices
from tests.benchmarks.campaign.ledger import Ledger
from tests.benchmarks.campaign.predict import solved
from tests.benchmarks.sections import made_by, table, write_section
from tests.benchmarks.trials import need_hosts, options, print_document, teller

__all__ = ["METRICS", "STYLES", "model_of", "plans_of", "section", "summary"]

TITLE = "Pipeline"
#: Requests as they are profiled: sequences at a time, and the prompt's tokens.
LOADS = ((1, 64), (4, 32))
NEW_TOKENS, TEMPERATURES = 12, (0.0, 0.8)
METRICS = {"ttft_s": "time to first token", "tpot_s": "time per later token"}
#: Of a median absolute error.
GOAL = 0.05

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


def profiled(ledger: Ledger, models: dict[str, CausalLM], quick: bool, say) -> list[Device]:
    """Measure once; a run that is resumed uses the same profiles."""
    found = ledger.get("profile", "devices")
    if found is None:
        pairs = [
            (model, TextWorkload(prompt_tokens=prompt, new_tokens=NEW_TOKENS, batch=batch))
            for model in models.values()
            for batch, prompt in LOADS
        ]
        command = "tests/benchmarks/llm_pipeline.py"
        devices = measured_devices(1 if quick else 3, 1 if quick else 2, say, pairs, command)
        documents = [device.model_dump(mode="json", by_alias=True) for device in devices]
        found = ledger.put("profile", "devices", {"devices": documents})
    return [Device.model_validate(document) for document in found["devices"]]


def plans_of(models: dict[str, CausalLM], devices: list[Device], seed: int, count: int) -> list[tuple[str, Plan]]:
    """Draw a cluster and a request for each plan; every second plan is the planner's, the others are drawn."""
    plans: list[tuple[str, Plan]] = []
    number = 0
    while len(plans) < count:
        rng = np.random.default_rng([seed, number])
        index = len(plans)
        style = list(models)[index % len(models)]
        batch, prompt = LOADS[index // len(models) % len(LOADS)]
        load = TextWorkload(
            prompt_tokens=prompt, batch=batch, new_tokens=int(rng.integers(6, NEW_TOKENS + 1)),
            temperature=float(rng.choice(TEMPERATURES)),
        )  # fmt: skip
        problem = draw_problem(rng, f"p{index}", "pipeline", models[style], lambda _, load=load: load, devices, most=4)
        plan = draw_plan(rng, problem) if index % 2 else solved(problem)
        number += 1
        if plan is not None:  # a draw whose memories leave no plan is drawn again
            plans.append((f"p{index}", plan))
    return plans


def run(ledger: Ledger, quick: bool, seed: int, say) -> None:
    """Profile, plan, run every plan in turns."""
    models = {style: model_of(style) for style in list(STYLES)[: 1 if quick else None]}
    devices = profiled(ledger, models, quick, say)
    plans = plans_of(models, devices, seed, 2 if quick else 20)
    turns = 1 if quick else 2
    for turn in range(turns):
        for number, (key, plan) in enumerate(plans, start=1):
            found = ledger.get("runs", key)
            if found is not None and found["turns"] > turn:
                continue
            about = f"{plan.problem.model.name}, {len(plan.stages)} stages, {plan.latency_s:.3g} s predicted"
            say(f"turn {turn + 1} of {turns}, {number} of {len(plans)}: {about}")
            report = execute(plan, on="emulated", repeat=2 if quick else 3, warmup=1, check=turn == 0, timeout_s=180.0)
            ledger.put("runs", key, _row(plan, report, found))


def _row(plan: Plan, report: Report, before: dict[str, Any] | None) -> dict[str, Any]:
    """All turns of a plan so far."""
    load = plan.problem.workload
    assert isinstance(load, TextWorkload)
    samples = {name: report.metrics[name].samples for name in METRICS}
    if before is not None:
        samples = {name: [*before["samples"][name], *new] for name, new in samples.items()}
        equal = before["equal"]
    else:
        assert report.output is not None
        equal = report.output.equal and report.output.kind == "tokens" and report.output.repeats_equal
    return {
        "model": plan.problem.model.name, "chosen": plan.backend != "drawn", "stages": len(plan.stages),
        "devices": len(plan.problem.devices), "batch": load.batch, "temperature": load.temperature, "equal": equal,
        "predicted": {name: plan.metrics[name] for name in METRICS}, "samples": samples,
        "turns": 1 if before is None else before["turns"] + 1,
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
        "plans": len(rows), "equal": sum(row["equal"] for row in rows), "turns": min(row["turns"] for row in rows),
        "sampled": sum(row["temperature"] > 0 for row in rows),
        "reached": all(_figures(rows, metric)["error_median"] <= GOAL for metric in METRICS),
        **{metric: _figures(rows, metric) for metric in METRICS},
        "groups": {
            name: {"plans": len(own), **{metric: _figures(own, metric)["error_median"] for metric in METRICS}}
            for name, own in groups.items()
        },
    }  # fmt: skip


def section(ledger: Ledger, found: dict[str, Any]) -> list[str]:
    """Return the section's text: goals, groups, all plans."""
    lines = [
        f"{found['plans']} plans of small models with random weights in the style of Llama, Qwen and Mixtral, on",
        "emulated hosts: 2 to 4 devices whose speeds",
        "differ up to 4 times, links of 10 to 1000 Mbit/s and 1 to 50 ms, one sequence at a time or four, greedy or "
        f"sampled ({found['sampled']}). Plans in bold are the planner's,",
        f"the others were drawn. Every plan ran in {found['turns']} turns with new processes; measured is the median",
        "of its requests.",
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
    parser = options(__doc__, "two plans of one model in one turn", folder="llm-pipeline")
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
