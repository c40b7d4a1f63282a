"""Go on after a fault: with the same devices, or planned again without the one that is lost.

A request is resumed from its last hand-off: a diffusion run from the latent that the last stage to begin was handed, a
language model from the tokens it has made, which are then part of the prompt. What is left of it gets a plan of its own
(:mod:`edgeopt.executor.rest`). The workers start again, since the group they formed is broken with any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edgeopt.errors import EdgeoptError, ExecutionError, NoPlanError
from edgeopt.executor.attempt import Log, Options, run_workers
from edgeopt.executor.launchers.base import Launcher
from edgeopt.executor.messages import Handoff
from edgeopt.plan import Plan
from edgeopt.profiles.problem import Constraints, ExpertsOptions, Problem, TextWorkload
from edgeopt.report.data import Recovery

__all__ = ["Interrupted", "Ran", "resumed_plan", "run_to_the_end", "without_device"]

#: Faults after which the run gives up: a machine on which workers die again and again needs its owner.
_MOST = 3


@dataclass(slots=True)
class Ran:
    """The attempt that ended well, and what went wrong before it."""

    launcher: Launcher
    log: Log
    recoveries: list[Recovery] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A request under way when a fault came, and what is to become of it.

    Attributes
    ----------
    number
        Of the request.
    handoffs
        All that is kept of it, from however many attempts.
    followed
        A plan with the cuts and variants by which the kept part was computed.
    resumed, rest
        What the next attempt runs; the same where the rest has a plan of its own, else ``rest`` is ``None``.
    planned_s
        When that was known, on the driver's clock.
    """

    number: int
    handoffs: list[Handoff]
    followed: Plan
    resumed: Plan
    rest: Plan | None
    planned_s: float


def run_to_the_end(
    launcher: Launcher,
    launch: Callable[[Plan], Launcher],
    options: Options,
    result_fd: int,
    started_s: float,
) -> Ran:
    """Serve all requests, recovering from faults as ``options.on_fault`` says; a recovery may meet a fault, too.

    Parameters
    ----------
    launch
        Makes a launcher for another plan.

    Raises
    ------
    ExecutionError
        A fault, where none is to be recovered from; the source is lost; no plan exists without the device; time is
        over; the same fault word for word with nothing gained in between; or the fourth fault.
    """
    ran = Ran(launcher, Log())
    request: Interrupted | None = None
    once = replace(options, repeat=1, warmup=0)
    while True:
        ran.log = Log()
        try:
            if request is None:
                run_workers(ran.launcher.plan, ran.launcher, options, ran.log, result_fd, started_s)
                return ran
            again = launch(request.resumed)
            run_workers(request.resumed, again, once, ran.log, result_fd, started_s, request.handoffs)
            _close(ran, request, time.monotonic())
            request = None
        except ExecutionError as error:
            failed_s = time.monotonic()
            if options.on_fault == "fail" or failed_s > started_s + options.timeout_s:
                raise
            if request is not None:
                _close(ran, request, failed_s)
            _give_up_on(error, ran)
            request = _take_up(ran, request, error, launch, options, failed_s)


def _give_up_on(error: ExecutionError, ran: Ran) -> None:
    """Raise what is not worth another attempt."""
    before = ran.recoveries
    here = error.device, error.stage, error.reason
    if before and here == (before[-1].device, before[-1].stage, before[-1].reason) and not ran.log.handoffs:
        raise ExecutionError(f"{error.reason} (twice in a row)", stage=error.stage, device=error.device) from error
    if len(before) == _MOST:
        raise ExecutionError(
            f"{error.reason} (the {_MOST + 1}th fault of this run)", stage=error.stage, device=error.device
        ) from error


def _take_up(
    ran: Ran,
    request: Interrupted | None,
    error: ExecutionError,
    launch: Callable[[Plan], Launcher],
    options: Options,
    failed_s: float,
) -> Interrupted:
    """Decide how an interrupted request goes on; note the fault, and leave in ``ran`` what serves the others."""
    lost, before = ran.log, ran.launcher.plan
    number, handoffs, followed = _kept(request, lost, before)
    plan, rest = before, None
    if options.on_fault == "replan":
        from edgeopt.executor.rest import plan_rest  # planning is loaded when there is something to plan

        plan = _planned_again(ran.launcher, error, options)
        rest = plan_rest(plan.problem, followed, handoffs)
    planned_s = time.monotonic()
    options.progress(f"{error}; {options.on_fault}: request {number + 1} goes on {_from(handoffs)}")
    ran.launcher = launch(plan)
    ran.recoveries.append(
        Recovery(
            request=number,
            policy="replan" if options.on_fault == "replan" else "retry",
            device=error.device,
            stage=error.stage,
            reason=error.reason,
            resumed_from=_from(handoffs),
            kept_bytes=sum(len(handoff.data) * 3 // 4 for handoff in handoffs),
            served_before_s=failed_s - (lost.serving_s or failed_s),
            planning_s=planned_s - failed_s,
            restart_s=0.0,
            rest_s=0.0,
            devices=list(dict.fromkeys(stage.device for stage in plan.stages)),
            predicted_latency_s=plan.latency_s,
            predicted_rest_s=None if rest is None else rest.latency_s,
            digest=None,
        )
    )
    return Interrupted(number, handoffs, followed, rest or resumed_plan(plan, handoffs), rest, planned_s)


def _close(ran: Ran, request: Interrupted, now_s: float) -> None:
    """Complete the last recovery: its request has its result, or another fault has come."""
    serving_s = ran.log.serving_s or now_s
    source = ran.log.traces.get(0, {}).get(0)
    ended = source is not None and source.start is not None and source.stop is not None
    ran.recoveries[-1] = ran.recoveries[-1].model_copy(
        update={
            "restart_s": serving_s - request.planned_s,
            "rest_s": source.stop - source.start if ended else now_s - serving_s,  # type: ignore[union-attr, operator]
            "digest": source.digest if source is not None else None,
        }
    )


def _kept(request: Interrupted | None, lost: Log, plan: Plan) -> tuple[int, list[Handoff], Plan]:
    """Number of the interrupted request, what is kept of it, and the plan that this has followed."""
    if request is None:
        number = max(lost.traces, default=-1) + 1 if _is_whole(lost) else max(lost.traces, default=0)
        return number, _usable(lost.handoffs, number), plan
    fresh = _usable(lost.handoffs, 0)
    if not fresh:
        return request.number, request.handoffs, request.followed
    if fresh[-1].purpose == "loop":
        return request.number, [*request.handoffs, *fresh], plan
    after = request.rest or plan
    followed = _spliced(request.followed, after, request.handoffs[-1].cut) if request.handoffs else after
    return request.number, fresh, followed


def _spliced(before: Plan, after: Plan, cut: int) -> Plan:
    """Return ``before`` with the cuts and variants of ``after`` behind ``cut``."""
    first = [i for i, stop in enumerate(before.cuts) if stop < cut]
    second = [i for i, stop in enumerate(after.cuts) if stop > cut]
    cuts = [*(before.cuts[i] for i in first), cut, *(after.cuts[i] for i in second)]
    variants = [*before.variants[: len(first) + 1], *(after.variants[i] for i in second)]
    return before.model_copy(update={"cuts": cuts, "variants": variants})


def _planned_again(launcher: Launcher, error: ExecutionError, options: Options) -> Plan:
    plan = launcher.plan
    source = launcher.layout.hosts[0].device
    if error.device is None or error.device == source:
        who = "the source, which holds the request," if error.device else "a worker that cannot be named"
        raise ExecutionError(
            f"{error.reason}; {who} is lost, so nothing can be planned again", stage=error.stage, device=error.device
        )
    left = without_device(plan, error.device)
    for device in plan.problem.devices:
        if device.name != error.device and not launcher.can_start(device.name):
            left = without_device(plan.model_copy(update={"problem": left}), device.name)
    try:
        found = _any_plan(left, plan.strategy)
    except EdgeoptError as none:
        raise ExecutionError(
            f"{error.reason}; without '{error.device}' there is no plan: {none}", stage=error.stage, device=error.device
        ) from error
    options.progress(f"planned again without {error.device}: {found.latency_s:.4g} s")
    return found


def _any_plan(left: Problem, strategy: str) -> Plan:
    """Plan what is left; where a mixture's trunk cannot stay where it was, on any device that can hold it."""
    from edgeopt import planner

    try:
        return planner.solve(left, strategy=strategy, time_limit_s=10.0)
    except NoPlanError:
        options = left.constraints.experts
        if options.trunk is None:
            raise
        anywhere = {"experts": options.model_copy(update={"trunk": None})}
        constraints = left.constraints.model_copy(update=anywhere)
        return planner.solve(left.model_copy(update={"constraints": constraints}), strategy=strategy, time_limit_s=10.0)


def without_device(plan: Plan, name: str) -> Problem:
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
            "experts": _experts_without(wishes, name),
            "patch": wishes.patch.model_copy(update={"devices": [], "strides": []})
            if name in wishes.patch.devices
            else wishes.patch,
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


def _experts_without(wishes: Constraints, name: str) -> ExpertsOptions:
    """Return what the problem says about experts without a device.

    A trunk that is lost may be on any other, and formats are decided anew where a quality is to be kept.
    """
    options = wishes.experts
    weights = options.weights and {device: dtype for device, dtype in options.weights.items() if device != name}
    if wishes.quality is not None:
        weights = None
    return options.model_copy(update={"trunk": None if options.trunk == name else options.trunk, "weights": weights})


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


def _is_whole(log: Log) -> bool:
    """Whether the last request that anybody spoke of has its result."""
    if not log.traces:
        return True
    return any(trace.stop is not None for trace in log.traces[max(log.traces)].values())


def _from(handoffs: Sequence[Handoff]) -> str:
    if not handoffs:
        return "from its start"
    last = handoffs[-1]
    return f"after token {len(handoffs)}" if last.purpose == "loop" else f"from cut {last.cut}"
