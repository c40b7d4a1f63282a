"""What becomes of a request when faults interrupt it, one after another: by script, without processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from edgeopt import planner
from edgeopt.errors import ExecutionError
from edgeopt.executor import recovery as module
from edgeopt.executor.attempt import Log, Options
from edgeopt.executor.layout import Layout
from edgeopt.executor.messages import Handoff, Trace
from edgeopt.executor.recovery import Ran, run_to_the_end
from edgeopt.plan import Plan
from tests.edgeopt.executor.plans import toy_plan
from tests.edgeopt.expert_cases import in_bits, mixture
from tests.edgeopt.expert_cases import problem as expert_problem
from tests.edgeopt.factories import device


class Scripted:
    """A launcher that starts nothing; attempts go as a script says."""

    def __init__(self, plan: Plan, reachable: Sequence[str] = ("phone", "laptop", "server")) -> None:
        self.plan, self.layout, self.reachable = plan, Layout.of(plan), reachable

    def can_start(self, device: str) -> bool:
        return device in self.reachable


def by_script(
    monkeypatch: pytest.MonkeyPatch,
    plan: Plan,
    attempts: Sequence[tuple[list[Handoff], ExecutionError | None]],
    on_fault: Any = "retry",
    reachable: Sequence[str] = ("phone", "laptop", "server"),
    timeout_s: float = 60.0,
) -> tuple[Callable[[], Ran], list[tuple[Plan, int, list[Handoff]]]]:
    """Return what runs a plan whose attempts hand over and then fail or end, and the list of what was attempted."""
    tried: list[tuple[Plan, int, list[Handoff]]] = []

    def attempt(plan: Plan, launcher: Any, options: Options, log: Log, fd: int, started_s: float, resume=()) -> None:
        handoffs, error = attempts[len(tried)]
        tried.append((plan, options.repeat, list(resume)))
        log.serving_s, log.handoffs = time.monotonic(), handoffs
        if error is not None:
            raise error
        for number in range(options.repeat):
            trace = Trace(request=number, warmup=False, start=1.0, stop=3.0, digest="d", computes=[], sends=[],
                          receives=[])  # fmt: skip
            log.traces[number] = {0: trace}

    monkeypatch.setattr(module, "run_workers", attempt)
    options = Options(
        2, 0, 1, timeout_s, 0, False, None, False, lambda line: None, (), on_fault, None
    )  # fmt: skip
    started_s = time.monotonic()

    def go() -> Ran:
        return run_to_the_end(
            Scripted(plan, reachable),  # type: ignore[arg-type]
            lambda other: Scripted(other, reachable),  # type: ignore[arg-type, return-value]
            options, 0, started_s,
        )  # fmt: skip

    return go, tried


def lost(device: str, words: str = "killed") -> ExecutionError:
    return ExecutionError(words, stage=1 if device == "server" else 0, device=device)


def token(round_index: int) -> Handoff:
    return Handoff(request=0, purpose="loop", cut=6, round=round_index, data="AAAA")


def test_a_fault_in_a_recovery_is_recovered_from(monkeypatch) -> None:
    plan = toy_plan(("phone", 2), ("server", 6), rounds=9)
    go, tried = by_script(
        monkeypatch, plan,
        [([token(1), token(2)], lost("server")), ([token(1)], lost("server", "again")), ([], None), ([], None)],
    )  # fmt: skip
    ran = go()
    loads = [attempted.problem.workload for attempted, _, _ in tried]
    assert [(load.prompt_tokens, load.new_tokens) for load in loads] == [(10, 9), (12, 7), (13, 6), (10, 9)]
    assert [len(resume) for *_, resume in tried] == [0, 2, 3, 0], "what the first recovery added is kept"
    assert [repeat for _, repeat, _ in tried] == [2, 1, 1, 2], "then all requests are served"
    assert [one.digest for one in ran.recoveries] == [None, "d"]
    assert [one.resumed_from for one in ran.recoveries] == ["after token 2", "after token 3"]
    assert [one.reason for one in ran.recoveries] == ["killed", "again"]
    assert (ran.recoveries[1].rest_s, ran.recoveries[0].kept_bytes) == (2.0, 6)
    assert sorted(ran.log.traces) == [0, 1]


def test_a_latent_that_a_recovery_handed_over_is_where_the_next_begins(monkeypatch) -> None:
    plan = toy_plan(("phone", 2), ("server", 4), ("laptop", 6))
    cuts = [Handoff(request=0, purpose="cut", cut=cut, round=0, data="") for cut in (2, 4)]
    faults = [([cuts[0]], lost("server")), ([cuts[1]], lost("laptop")), ([], lost("laptop", "again")), ([], None)]
    go, tried = by_script(monkeypatch, plan, [*faults, ([], None)])
    ran = go()
    assert [[(s.start, s.stop) for s in attempted.stages] for attempted, _, _ in tried] == [
        [(0, 2), (2, 4), (4, 6)], [(2, 4), (4, 6)], [(4, 6)], [(4, 6)], [(0, 2), (2, 4), (4, 6)],
    ]  # fmt: skip
    assert [one.resumed_from for one in ran.recoveries] == ["from cut 2", "from cut 4", "from cut 4"]


def test_what_two_plans_have_done_is_told_by_one() -> None:
    before = toy_plan(("phone", 2), ("server", 5), ("laptop", 6)).model_copy(update={"variants": [0, 1, 0]})
    after = toy_plan(("phone", 3), ("laptop", 4), ("phone", 6)).model_copy(update={"variants": [0, 2, 3]})
    both = module._spliced(before, after, 3)
    assert (both.cuts, both.variants) == ([2, 3, 4, 6], [0, 1, 2, 3]), "elements 2 and 4 of variants 1 and 3"
    both = module._spliced(before, after, 5)
    assert (both.cuts, both.variants) == ([2, 5, 6], [0, 1, 3])


def test_faults_without_end_end_the_run(monkeypatch) -> None:
    plan = toy_plan(("phone", 2), ("server", 6))
    go, tried = by_script(monkeypatch, plan, [([], lost("server", str(k))) for k in range(9)])
    with pytest.raises(ExecutionError, match=r"stage 1 on device 'server': 3 \(the 4th fault of this run\)"):
        go()
    assert len(tried) == 4
    go, tried = by_script(monkeypatch, plan, [([], lost("server"))] * 9)
    with pytest.raises(ExecutionError, match=r"killed \(twice in a row\)"):
        go()
    assert len(tried) == 2
    go, tried = by_script(monkeypatch, plan, [([], lost("server"))] * 9, timeout_s=0.0)
    with pytest.raises(ExecutionError, match=r"killed$"):
        go()
    assert len(tried) == 1, "no time is left for another attempt"


def test_only_machines_that_are_known_are_planned_with(monkeypatch) -> None:
    plan = toy_plan(("phone", 2), ("server", 6))
    for reachable, expected in ((("phone", "server"), ["phone"]), (("phone", "laptop", "server"), ["phone", "laptop"])):
        script = [([], lost("server")), ([], None), ([], None)]
        go, tried = by_script(monkeypatch, plan, script, on_fault="replan", reachable=reachable)
        ran = go()
        assert [device.name for device in tried[-1][0].problem.devices] == expected
        assert "server" not in ran.recoveries[0].devices


def experts_plan(**constraints: Any) -> Plan:
    """A mixture on three devices, each of which could be its trunk, two of which hold all of it."""
    devices = [device(name, gflops=10, memory=4.1e6) for name in ("desk", "box", "far")]
    return planner.solve(expert_problem(devices=devices, constraints={"source": "desk", **constraints}), diagnose=False)


def test_a_mixture_is_planned_again_without_a_device(monkeypatch) -> None:
    names = ("desk", "box", "far")
    plan = experts_plan(experts={"trunk": "box"})
    for gone, trunks in (("box", {"desk", "far"}), ("far", {"box"})):
        script = [([], ExecutionError("killed", stage=1, device=gone)), ([], None), ([], None)]
        go, tried = by_script(monkeypatch, plan, script, on_fault="replan", reachable=names)
        ran = go()
        assert ran.recoveries[0].resumed_from == "from its start"
        assert tried[-1][0].decisions["trunk"] in trunks
        assert gone not in ran.recoveries[0].devices
        assert planner.verify(tried[-1][0]) == []


def test_a_source_that_is_lost_is_named_with_its_stage(monkeypatch) -> None:
    go, _ = by_script(monkeypatch, toy_plan(("phone", 2), ("server", 6)), [([], lost("phone"))], on_fault="replan")
    with pytest.raises(ExecutionError, match="stage 0 on device 'phone': killed; the source, which holds the request"):
        go()


def test_what_a_problem_says_about_experts_goes_with_the_device() -> None:
    case = expert_problem(
        model=in_bits(mixture()),
        constraints={"experts": {"trunk": "desk", "weights": {"desk": "int8", "box": "int4"}}, "source": "far"},
    )
    plan = planner.solve(case)
    left = module.without_device(plan, "box").constraints.experts
    assert (left.trunk, left.weights) == ("desk", {"desk": "int8"})
    assert module.without_device(plan, "desk").constraints.experts.trunk is None
    kept = case.model_copy(update={"constraints": case.constraints.model_copy(update={"quality": 0.5})})
    anew = module.without_device(plan.model_copy(update={"problem": kept}), "box")
    assert anew.constraints.experts.weights is None, "formats are decided anew where a quality is to be kept"


def test_experts_that_fit_nowhere_without_a_device_are_named_with_bytes(monkeypatch) -> None:
    plan = planner.solve(expert_problem(constraints={"source": "desk"}))
    gone = next(stage for stage in plan.stages if stage.device != "desk")
    small = plan.problem.devices[0].model_copy(update={"memory": 3.3e6})
    plan = plan.model_copy(update={"problem": plan.problem.model_copy(update={"devices": [small, *(
        d.model_copy(update={"memory": 1.1e6 if d.name != gone.device else d.memory}) for d in plan.problem.devices[1:]
    )]})})  # fmt: skip
    script = [([], ExecutionError("killed", stage=gone.index, device=gone.device))]
    go, _ = by_script(monkeypatch, plan, script, on_fault="replan", reachable=("desk", "box", "far"))
    with pytest.raises(ExecutionError, match=rf"without '{gone.device}' there is no plan: .*memory: .* bytes"):
        go()
