"""What the executor adds to computing and sending, and the same split run by others, in turns on the same machine."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgeopt.executor import execute
from edgeopt.executor.cores import awake, split_cores
from edgeopt.executor.launch import start_process
from edgeopt.executor.launchers.emulated import wires_of
from edgeopt.executor.layout import Layout
from edgeopt.executor.netlab import Lab
from edgeopt.plan import Plan
from edgeopt.profiles import load_model
from edgeopt.profiles.network import LinkQuality, Network
from edgeopt.profiles.problem import Constraints, Problem, TextWorkload
from edgeopt.programs import reference
from edgeopt_solvers.chain import Solution
from tests.benchmarks.campaign.draws import MODELS, priced
from tests.benchmarks.campaign.ledger import Ledger
from tests.benchmarks.campaign.predict import devices_of

__all__ = ["PART", "run", "summary"]

PART = "overhead"
_PEER = Path(__file__).with_name("peers.py")
#: (name, peer, prompt, new tokens, stages): a prefill for pipelining, whose shapes are fixed.
_SETTINGS = (
    ("prefill, 2 stages", "pipelining", 64, 1, 2),
    ("prefill, 3 stages", "pipelining", 64, 1, 3),
    ("generation, 2 stages", "transformers", 32, 12, 2),
)
_RATE, _LATENCY = 100e6 / 8, 0.005


def run(ledger: Ledger, quick: bool, seed: int, say) -> None:
    """Take turns between this executor and its peer."""
    full = devices_of(ledger, quick, say)[0]
    turns, repeat = (1, 3) if quick else (2, 7)
    for name, how, prompt, new, stages in _SETTINGS:
        if ledger.get(PART, name) is not None:
            continue
        plan = _plan(full, prompt, new, stages)
        ours: list[float] = []
        theirs: list[float] = []
        nominal_s = sum(moved.seconds for moved in plan.transfers)
        ratios, same, expected = [], True, reference(plan, 0)[0].tolist()
        for turn in range(turns):
            say(f"{name}: turn {turn + 1} of {turns}, this executor and {how}")
            report = execute(plan, on="emulated", repeat=repeat, warmup=2, check=turn == 0, timeout_s=120.0)
            ours += report.latency_s.samples
            computing_s = sum(stage.compute_s.median for stage in report.stages)
            ratios.append(report.latency_s.median / (computing_s + nominal_s))
            same = same and (report.output is None or report.output.equal)
            found = _peer(plan, how, repeat)
            theirs += found["seconds"]
            same = same and found["tokens"] == expected
        ledger.put(
            PART, name,
            {
                "peer": how, "stages": stages, "equal": same, "ratio": statistics.median(ratios),
                "ours_s": statistics.median(ours), "theirs_s": statistics.median(theirs),
                "ours_samples_s": ours, "theirs_samples_s": theirs,
            },
        )  # fmt: skip


def _plan(full, prompt: int, new: int, stages: int) -> Plan:
    devices = [full.model_copy(update={"name": f"d{k}", "margin": None}) for k in range(stages)]
    problem = Problem(
        name="overhead", model=load_model(MODELS["pipeline"]), strategy="pipeline",
        workload=TextWorkload(prompt_tokens=prompt, new_tokens=new), devices=devices,
        network=Network(name="even", source="set by the benchmark", default=LinkQuality(rate=_RATE, latency=_LATENCY)),
        constraints=Constraints(source="d0"),
    )  # fmt: skip
    num_elements = sum(layer.count for layer in problem.model.layers)
    cuts = tuple(num_elements * (k + 1) // stages for k in range(stages))
    return priced(problem, Solution(cuts, tuple(range(stages)), (0,) * stages, None))


def _peer(plan: Plan, how: str, repeat: int) -> dict[str, Any]:
    """Run the peer's ranks in the same laboratory network that a plan gets, on cores divided and awake alike."""
    layout = Layout.of(plan)
    names = [host.device for host in layout.hosts]
    processes: list[subprocess.Popen[bytes]] = []
    computing, other = split_cores([host.threads for host in layout.hosts], one_at_a_time=True) or (None, None)
    with awake(), Lab(names, wires_of(plan, layout), other) as lab:
        try:
            for rank, name in enumerate(names):
                command = lab.command(name, [sys.executable, str(_PEER)])
                process = start_process(1, command, interface=Lab.interface)
                job = {
                    "how": how, "plan": json.loads(plan.model_dump_json(by_alias=True)), "rank": rank,
                    "world": len(names), "address": lab.address(names[0]), "warmup": 2, "repeat": repeat,
                    "compute_cores": computing, "other_cores": other,
                }  # fmt: skip
                assert process.stdin is not None
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
                processes.append(process)
            said, errors = processes[0].communicate(timeout=120)
            if not said:
                raise RuntimeError(f"{how} failed: {errors.decode(errors='replace')[-2000:]}")
            return json.loads(said.splitlines()[-1])
        finally:
            for process in processes:
                process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        stream.close()


def summary(ledger: Ledger) -> dict[str, Any] | None:
    """Ratios by setting."""
    rows = ledger.of(PART)
    if not rows:
        return None
    keep = ("peer", "stages", "equal", "ratio", "ours_s", "theirs_s")
    return {"settings": {name: {key: row[key] for key in keep} for name, row in rows.items()}}
