"""The campaign as a page of the documentation: goals beside findings, then all rows."""

from __future__ import annotations

import platform
from datetime import date
from typing import Any

from edgeopt.executor.hardware import describe_hardware
from tests.benchmarks.campaign.ledger import Ledger

__all__ = ["page"]

_NOT = "not measured"


def page(ledger: Ledger, found: dict[str, Any], seconds: dict[str, float], quick: bool) -> str:
    """Return the page; parts that were not run say so."""
    machine = describe_hardware()
    took = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    lines = [
        "# The executor on trial",
        "",
        "Written by `python tests/benchmarks/executor.py --write docs/measurements/executor.md`. Hosts are emulated: a",
        "network namespace per device on one machine, links shaped to the drawn network, devices slowed down by",
        "resting ([Emulated hosts](../design/emulated-hosts.md)). Profiles are measured once, before any plan exists,",
        "and nothing is adjusted afterwards.",
        "",
        f"{date.today().isoformat()}, {machine.usable_cores} x {machine.cpu} ({platform.machine()}), torch "
        f"{machine.versions.get('torch', '?')}. Seconds: {took}.",
        "",
    ]  # fmt: skip
    if quick:
        lines += ["**A shake-down with few plans and repeats: its figures say nothing about the goals.**", ""]
    for part in (_predict, _overhead, _calibrate, _correct, _faults):
        lines += part(ledger, found)
    return "\n".join([*lines, ""])


def _predict(ledger: Ledger, found: dict[str, Any]) -> list[str]:
    lines = ["## Prediction", ""]
    facts = found["predict"]
    if facts is None:
        return [*lines, _NOT, ""]
    rank, within, regret = (facts[key] for key in ("kendall_all", "kendall_within", "chosen_above_best_worst"))
    lines += [
        f"{facts['plans']} plans for {facts['clusters']} drawn clusters: 2 to 5 devices whose speeds differ up to 4 "
        "times, links of 10 to 1000 Mbit/s and",
        "1 to 50 ms. Of every cluster the plan that the planner chose (bold) and others drawn at random. Every plan "
        "was run in",
        f"{facts['turns']} turns with new processes; measured is the median of {facts['requests']} requests.",
        "",
        "| end-to-end latency | goal | found |",
        "|---|---|---|",
        f"| median absolute error | 5 % | {_percent(facts['error_median'])} |",
        f"| 90th percentile | 12 % | {_percent(facts['error_p90'])} |",
        f"| worst | – | {_percent(facts['error_worst'])} |",
        f"| Kendall's tau, predicted and measured order of all plans | 0.95 | {_number(rank)} |",
        f"| the same within clusters | – | {_number(within)} |",
        f"| the same of the {facts['pairs_apart']} of {facts['pairs']} pairs whose requests do not overlap in time | – "
        f"| {_number(facts['kendall_apart'])} |",
        f"| chosen plan above the best measured, worst cluster | 3 % | {_percent(regret)} |",
        "",
        f"Signed median {facts['signed_median']:+.1%}; by family "
        + ", ".join(f"{name} {_percent(value)}" for name, value in facts["families"].items())
        + ". Median of predicted minus measured: compute "
        + ", ".join(
            f"{name if name != 'compute' else ''} {1e3 * facts[f'{name}_median_s']:+.1f} ms".strip()
            for name in ("compute", "transfer", "overhead")
        )
        + ".",
        "",
        "| plan | program | stages on devices | predicted ms | measured ms | error | compute, transfers, rest (ms) |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, row in ledger.of("predict").items():
        name = f"**{key}**" if row["chosen"] else key
        terms = ", ".join(f"{1e3 * row[f'{t}_error_s']:+.1f}" for t in ("compute", "transfer", "overhead"))
        lines.append(
            f"| {name} | {row['family']} | {row['stages']} on {row['devices']} | {1e3 * row['predicted_s']:.1f} | "
            f"{1e3 * row['measured_s']:.1f} | {row['error']:+.1%} | {terms} |"
        )
    return [*lines, ""]


def _overhead(ledger: Ledger, found: dict[str, Any]) -> list[str]:
    lines = ["## Overhead", ""]
    plans, facts = found["predict"], found["overhead"]
    if plans is not None and plans["long_plans"]:
        lines += [
            "Measured end to end over measured compute + bytes/rate + latency, of the "
            f"{plans['long_plans']} plans above all of whose stages take 20 ms or more:",
            f"median {plans['overhead_median']:.3f}, worst {plans['overhead_worst']:.3f} (goal 1.05).",
            "",
        ]
    if facts is None:
        return [*lines, f"Beside other executors: {_NOT}.", ""]
    lines += [
        "The same split, layers and weights by others, in turns with this executor (100 Mbit/s, 5 ms, one thread):",
        "",
        "| request | ratio to compute + link | this executor, ms | by | ms | this over that | result equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in facts["settings"].items():
        lines.append(
            f"| {name} | {row['ratio']:.3f} | {1e3 * row['ours_s']:.1f} | {row['peer']} | "
            f"{1e3 * row['theirs_s']:.1f} | {row['ours_s'] / row['theirs_s']:.3f} | {'yes' if row['equal'] else 'NO'} |"
        )
    return [*lines, ""]


def _calibrate(ledger: Ledger, found: dict[str, Any]) -> list[str]:
    lines, facts = ["## Calibration", ""], found["calibrate"]
    if facts is None:
        return [*lines, _NOT, ""]
    return [
        *lines,
        f"Devices without any timing of a model (a roofline predicts), corrected by {facts['runs']} executed plans, "
        f"then {facts['new_plans']} plans of other clusters:",
        f"median absolute error {_percent(facts['before_median'])} before and {_percent(facts['after_median'])} after, "
        f"worst {_percent(facts['before_worst'])} and {_percent(facts['after_worst'])}; "
        f"{facts['better']} of {facts['new_plans']} are nearer.",
        "",
    ]


def _correct(ledger: Ledger, found: dict[str, Any]) -> list[str]:
    lines, facts = ["## Correctness", ""], found["correct"]
    if facts is None:
        return [*lines, _NOT, ""]
    lines += [
        "Distributed result against a single process.",
        "",
        "| program | plans | equal | how |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['plans']} | {row['equal']} | {', '.join(row['kinds'])} |" for name, row in facts.items()
    ]
    return [*lines, ""]


def _faults(ledger: Ledger, found: dict[str, Any]) -> list[str]:
    lines, facts = ["## Faults", ""], found["faults"]
    if facts is None:
        return [*lines, _NOT, ""]
    lines += [
        "A toy program on two devices, the fault at a random moment: of the request; for half of the kills, of the",
        "start; for Ctrl-C, of start, request or check. `--on-fault` fail, retry and replan (with `--stall 3s`) take",
        "turns, and so do emulated hosts and local processes where the link has no part in the fault. As configured:",
        "the request finished with the right result, after a recovery where one is due and without the lost device",
        "where it was planned again; or an error that names stage and device; or the words for a full disk or an",
        "interruption. Left: a process, a control group, a temporary or half-written file.",
        "",
        "| fault | runs | as configured | left something | recovered | request, median s | ends |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in facts["cases"].items():
        ends = ", ".join(f"{count} {end}" for end, count in row["ends"].items())
        median_s = "–" if row["request_s"] is None else f"{row['request_s']:.1f}"
        lines.append(
            f"| {name} | {row['runs']} | {row['as_configured']} | {row['left_something']} | {row['recovered']} | "
            f"{median_s} | {ends} |"
        )
    left = facts["namespaces_left"]
    return [*lines, "", f"Network namespaces left: {_NOT if left is None else left}.", ""]


def _percent(value: float | None) -> str:
    return _NOT if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return _NOT if value is None else f"{value:.3f}"
