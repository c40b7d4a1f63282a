"""Go on after a fault: with the same devices, or planned again without the one that is lost.

A request is resumed from its last hand-off: a diffusion run from the latent that the last stage to begin was handed, a
language model from the tokens it has made, which are then part of the prompt. What is left of it gets a plan of its own
(:mod:`edgeopt.executor.rest`). The workers start again, since the group they formed is broken with any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edgeopt.errors import EdgeoptError, ExecutionError
from edgeopt.executor.attempt import Log, Options, run_workers
from edgeopt.executor.launchers.base import Launcher
from edgeopt.executor.messages import Handoff
from edgeopt.plan import Plan
from edgeopt.profiles.problem import TextWorkload
from edgeopt.report.data import Recovery

__all__ = ["Ran", "resumed_plan", "run_to_the_end", "without_device"]

#: Faults after which the run gives up: a machine on which workers die again and again needs its owner.
_MOST = 3


@dataclass(slots=True)
class Ran:
    """The attempt that ended well, and what went wrong before it."""

    launcher: Launcher
    log: Log
    recoveries: list[Recovery] = field(default_factory=list)


def run_to_the_end(
    launcher: Launcher,
    launch: Callable[[Plan], Launcher],
    options: Options,
    result_fd: int,
    started_s: float,
) -> Ran:
    """Serve all requests, recovering from faults as ``options.on_fault`` says.

    Parameters
    ----------
    launch
        Makes a launcher for another plan.

    Raises
    ------
    ExecutionError
        A fault, where none is to be recovered from; the source is lost; no plan exists without the device; or the
        third fault in a row. What was tried is in the message.
    """
    ran = Ran(launcher, Log())
    while True:
        try:
            run_workers(ran.launcher.plan, ran.launcher, options, ran.log, result_fd, started_s)
            return ran
        except ExecutionError as error:
            if options.on_fault == "fail":
                raise
            if len(ran.recoveries) == _MOST:
                raise ExecutionError(
                    f"{error.reason} (the {_MOST + 1}th fault; {_MOST} were recovered from)",
                    stage=error.stage,
                    device=error.device,
                ) from error
            _recover(ran, error, launch, options, result_fd, started_s)


def _recover(
    ran: Ran,
    error: ExecutionError,
    launch: Callable[[Plan], Launcher],
    options: Options,
    result_fd: int,
    started_s: float,
) -> None:
    """Finish the request that the fault interrupted; leave in ``ran`` what serves the others."""
    failed_s, lost = time.monotonic(), ran.log
    plan, policy = ran.launcher.plan, options.on_fault
    number = max(lost.traces, default=-1) + 1 if _is_whole(lost, ran.launcher) else max(lost.traces, default=0)
    handoffs = _usable(lost.handoffs, number)
    rest = None
    if policy == "replan":
        from edgeopt.executor.rest import plan_rest  # planning is loaded when there is something to plan

        plan = _planned_again(ran.launcher, error, options)
        rest = plan_rest(plan.problem, ran.launcher.plan, handoffs)
    replanned_s = time.monotonic()
    resumed = rest or resumed_plan(plan, handoffs)
    options.progress(f"{error}; {policy}: request {number + 1} goes on {_from(handoffs)}")
    log, again = Log(), launch(resumed)
    run_workers(resumed, again, replace(options, repeat=1, warmup=0), log, result_fd, started_s, handoffs)
    source = log.traces[0][0]
    serving_s = log.serving_s or replanned_s
    ran.recoveries.append(
        Recovery(
            request=number,
            policy="replan" if policy == "replan" else "retry",
            device=error.device,
            stage=error.stage,
            reason=error.reason,
            resumed_from=_from(handoffs),
            kept_bytes=sum(len(handoff.data) * 3 // 4 for handoff in handoffs),
            planning_s=replanned_s - failed_s,
            restart_s=serving_s - replanned_s,
            rest_s=(source.stop or 0.0) - (source.start or 0.0),
            served_before_s=failed_s - (lost.serving_s or failed_s),
            devices=list(dict.fromkeys(stage.device for stage in plan.stages)),
            predicted_latency_s=plan.latency_s,
            predicted_rest_s=None if rest is None else rest.latency_s,
            digest=source.digest,
        )
    )
    ran.launcher, ran.log = launch(plan), Log()


def _planned_again(launcher: Launcher, error: ExecutionError, options: Options) -> Plan:
    from edgeopt import planner

    plan = launcher.plan
    source = launcher.layout.hosts[0].device
    if error.device is None or error.device == source:
        who = "the source, which holds the request," if error.device else "a worker that cannot be named"
        raise ExecutionError(f"{error.reason}; {who} is lost, so nothing can be planned again", device=error.device)
    try:
        found = planner.solve(without_device(plan, error.device), strategy=plan.strategy, time_limit_s=10.0)
    except EdgeoptError as none:
        raise ExecutionError(
            f"{error.reason}; without '{error.device}' there is no plan: {none}", stage=error.stage, device=error.device
        ) from error
    options.progress(f"planned again without {error.device}: {found.latency_s:.4g} s")
    return found


def without_device(plan: Plan, name: str):  # type: ignore[no-untyped-def]
    """Return the plan's problem without a device, and without what the problem says about it.

    Pins of it are dropped with it: a request that is under way is worth more than the wish.
    """
    problem = plan.problem
    source = problem.constraints.source or problem.devices[0].name
    wishes = problem.constraints
    constraints = wishes.model_copy(
        update={
            "source": source,
            "pin": {element: device for element, device in wishes.pin.items() if device != name},
            "forbid": [device for device in wishes.forbid if device != name],
            "first": None if wishes.first == name else wishes.first,
            "last": None if wishes.last == name else wishes.last,
        }
    )
    network = problem.network.model_copy(
        update={
            "links": [
                link for link in problem.network.links if name not in (*(link.between or ()), link.from_, link.to)
            ]
        }
    )
    devices = [device for device in problem.devices if device.name != name]
    return problem.model_copy(update={"devices": devices, "constraints": constraints, "network": network})


def resumed_plan(plan: Plan, handoffs: Sequence[Handoff]) -> Plan:
    """Return what is left of a plan after hand-offs: fewer tokens to make, or only the stages after a cut."""
    if not handoffs:
        return plan
    last = handoffs[-1]
    if last.purpose == "loop":
        load = plan.problem.workload
        assert isinstance(load, TextWorkload)
        made = len(handoffs)
        load = load.model_copy(
            update={"prompt_tokens": load.prompt_tokens + made, "new_tokens": load.new_tokens - made}
        )
        return plan.model_copy(update={"problem": plan.problem.model_copy(update={"workload": load})})
    left = [stage for stage in plan.stages if stage.stop > last.cut]
    stages = [
        stage.model_copy(update={"index": i, "start": max(stage.start, last.cut)}) for i, stage in enumerate(left)
    ]
    return plan.model_copy(update={"stages": stages})


def _usable(handoffs: Sequence[Handoff], request: int) -> list[Handoff]:
    """Hand-offs of the interrupted request: all tokens in order, or the cut that lies farthest."""
    own = [handoff for handoff in handoffs if handoff.request == request]
    tokens = sorted((h for h in own if h.purpose == "loop"), key=lambda h: h.round)
    if tokens:
        return tokens
    return [max(own, key=lambda h: h.cut)] if own else []


def _is_whole(log: Log, launcher: Launcher) -> bool:
    """Whether the last request that anybody spoke of has its result."""
    if not log.traces:
        return True
    return any(trace.stop is not None for trace in log.traces[max(log.traces)].values())


def _from(handoffs: Sequence[Handoff]) -> str:
    if not handoffs:
        return "from its start"
    last = handoffs[-1]
    return f"after token {len(handoffs)}" if last.purpose == "loop" else f"from cut {last.cut}"
