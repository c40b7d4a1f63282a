"""Requests whose devices change under way, executed: a device is killed, one joins, one has become slower."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from edgeopt import planner
from edgeopt.executor import execute
from edgeopt.executor.layout import Layout
from edgeopt.executor.netlab import missing
from edgeopt.executor.serve import digest
from edgeopt.plan import Plan
from edgeopt.profiler.device import slowed
from edgeopt.programs import multi_stage
from edgeopt.questions.elastic import Elastic, elastic
from edgeopt.questions.events import Event
from edgeopt.questions.followed import followed_plan
from tests.benchmarks.diffusion.bench import Bench
from tests.benchmarks.diffusion.stages import here

__all__ = ["executed", "executed_lines"]

#: A worker is killed by the clock; a run in which it had not begun, or was done, is repeated.
_TRIES = 5
_FACTOR = 3.0
#: Of the boards, so that a faster device can join them.
_SPEED = 0.5


class _Leaver:
    """Hears what the driver says; kills a device's worker in the request after the warm-up."""

    def __init__(self, rank: int, part: float) -> None:
        self.rank, self.part, self.warm_up_s = rank, part, 0.0

    def __call__(self, line: str) -> None:
        if line.startswith("warm-up") and not self.warm_up_s:
            self.warm_up_s = float(line.split()[-2])
            threading.Timer(self.part * self.warm_up_s, self._kill).start()

    def _kill(self) -> None:
        workers = []
        for process in psutil.Process(os.getpid()).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # one that has just ended
                if any("executor.worker" in word for word in process.cmdline()):
                    workers.append(process)
        with contextlib.suppress(psutil.Error, IndexError):  # the run was over before
            sorted(workers, key=lambda process: (process.create_time(), process.pid))[self.rank].kill()


def executed(bench: Bench, name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Plan a bundled problem for this machine at the boards' relative speeds, and run it with and without changes."""
    # A shake-down does not measure this machine: the datasheets' devices run as fast as processes do here.
    boards = bench.problem(name) if bench.quick else here(bench.problem(name), say)
    devices = [slowed(device, _SPEED, device.name) for device in boards.devices]
    problem = boards.model_copy(update={"devices": devices})
    on = "local" if bench.quick or missing() else "emulated"
    plan, repeat = planner.solve(problem), 1 if bench.quick else 5
    last, middle = plan.stages[-1], plan.stages[-2]
    rows = [_measured(plan, on, repeat, "nothing", None, plan.latency_s)]
    say(f"undisturbed: {rows[-1]}")
    half = (middle.start + middle.stop + 1) // 2
    rows.append(_left(elastic(plan, half, [Event("leave", middle.device)]), on))
    say(f"{middle.device} leaves: {rows[-1]}")
    fastest = max(boards.devices, key=lambda device: device.compute["float32"])
    laptop = fastest.model_copy(update={"memory": 1e9, "margin": None})
    events = [Event("join", "laptop", profile=laptop), Event("slow", last.device, _FACTOR)]
    for event in events[: 1 if bench.quick else None]:
        found = elastic(plan, last.start, [event])
        whole = _as_slow(followed_plan(found), event)
        rows.append(_measured(whole, on, repeat, str(event), found, found.replanned.latency_s))
        say(f"{event}: {rows[-1]}")
    for row in rows:
        row["sampled"] = bench.sampled([bench.names.index(name) for name in row["variants"]])
    return {"launcher": on, "rows": rows}


def _as_slow(plan: Plan, event: Event) -> Plan:
    """Let a device that is to be slower have less of its core; its timings are those of the slow one already."""
    if event.kind != "slow":
        return plan
    devices = []
    for device in plan.problem.devices:
        quota = (device.runtime.cpu_quota or 1.0) / (event.factor if device.name == event.device else 1.0)
        runtime = device.runtime.model_copy(update={"cpu_quota": None if quota == 1 else quota})
        devices.append(device.model_copy(update={"runtime": runtime}))
    return plan.model_copy(update={"problem": plan.problem.model_copy(update={"devices": devices})})


def _measured(plan: Plan, on: str, repeat: int, what: str, found: Elastic | None, predicted_s: float) -> dict[str, Any]:
    """Run all of it as one plan: what joins or is slower is so from the start, where it has nothing to do yet."""
    report = execute(plan, on=on, repeat=repeat, warmup=1, timeout_s=240.0)
    assert report.output is not None
    return {
        "what": what, "step": None if found is None else found.step, "predicted_s": predicted_s,
        "measured_s": report.latency_s.median, "again_s": None, "equal": report.output.equal,
        "quality": plan.quality, "stages": _stages(plan), "variants": _variants(plan),
    }  # fmt: skip


def _left(found: Elastic, on: str) -> dict[str, Any]:
    """Kill a device where it is predicted to be when the change comes; the executor plans again and goes on."""
    (event,) = found.events
    rank = next(host.rank for host in Layout.of(found.plan).hosts if host.device == event.device)
    whole = followed_plan(found)
    for _ in range(_TRIES):
        leaver = _Leaver(rank, found.spent_s / found.planned.latency_s)  # type: ignore[operator]
        report = execute(
            found.plan, on=on, repeat=1, warmup=1, check=False, on_fault="replan", timeout_s=240.0, progress=leaver
        )
        recovery = next(iter(report.recoveries), None)
        if recovery is not None and recovery.resumed_from == f"from cut {_cut(found)}":
            break
    else:
        raise RuntimeError(f"{event.device} was never killed while it had the latent, in {_TRIES} runs")
    killed_s = leaver.part * leaver.warm_up_s
    return {
        "what": str(event), "step": found.step, "predicted_s": found.replanned.latency_s,
        "measured_s": killed_s + recovery.rest_s,
        "again_s": recovery.served_before_s - leaver.warm_up_s - killed_s + recovery.planning_s + recovery.restart_s,
        "equal": recovery.digest == digest(multi_stage.reference(whole, 0)),
        "quality": found.replanned.quality, "stages": _stages(whole), "variants": _variants(whole),
    }  # fmt: skip


def _cut(found: Elastic) -> int:
    """Return the element from which a request goes on."""
    return found.stages[0].start


def _stages(plan: Plan) -> list[str]:
    return [f"{stage.device} {stage.stop - stage.start} {stage.variant}" for stage in plan.stages]


def _variants(plan: Plan) -> list[str]:
    return [f"{stage.variant}" for stage in plan.stages for _ in range(stage.start, stage.stop)]


def executed_lines(found: dict[str, Any]) -> Sequence[str]:
    """Write the findings down."""
    lines = [
        "",
        f"Executed on {found['launcher']} hosts of this machine at the boards' relative speeds, the fastest at "
        f"{_SPEED:.0%}. "
        "The device that leaves is killed and the executor goes on from the hand-off that the source kept. To notice, "
        "plan and start again takes the time beside it, which prediction and measurement leave out. What joins or is "
        "slower is so from the start of a run of the whole, in which it has nothing to do before the change.",
        "",
        "| event | after steps | plan | predicted ms | measured ms | to start again ms | images of one process | "
        "Fréchet predicted / sampled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        again = "–" if row["again_s"] is None else f"{1e3 * row['again_s']:.0f}"
        lines.append(
            f"| {row['what']} | {'–' if row['step'] is None else row['step']} | {', '.join(row['stages'])} | "
            f"{1e3 * row['predicted_s']:.1f} | {1e3 * row['measured_s']:.1f} | {again} | "
            f"{'bitwise' if row['equal'] else 'DIFFER'} | {row['quality']:.2f} / {row['sampled']:.2f} |"
        )
    return lines
