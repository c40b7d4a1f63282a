"""A device is lost in the middle of a request: the request is finished, and the report says at what cost."""

from __future__ import annotations

import os
import threading

import psutil
import pytest

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from edgeopt import planner
from edgeopt.errors import ExecutionError, InputError
from edgeopt.executor import execute
from edgeopt.executor.messages import Handoff
from edgeopt.executor.recovery import resumed_plan, without_device
from edgeopt.plan import Plan
from edgeopt.profiles.problem import Constraints
from tests.edgeopt.executor import toy
from tests.edgeopt.executor.plans import toy_plan
from tests.edgeopt.programs.conftest import diffusion_plan, language_plan  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.torch, pytest.mark.processes]


def worker(rank: int) -> psutil.Process:
    found = [p for p in psutil.Process(os.getpid()).children() if any("executor.worker" in c for c in p.cmdline())]
    return sorted(found, key=lambda p: (p.create_time(), p.pid))[rank]


class Killer:
    """Ends a worker once, after a part of the time that the warm-up took."""

    def __init__(self, rank: int, part: float, act: str = "kill") -> None:
        self.rank, self.part, self.act, self.done = rank, part, act, False

    def __call__(self, line: str) -> None:
        if line.startswith("warm-up") and not self.done:
            self.done = True
            seconds = self.part * float(line.split()[-2])
            threading.Timer(seconds, lambda: getattr(worker(self.rank), self.act)()).start()


@pytest.fixture
def long_language(language_plan) -> Plan:  # noqa: F811
    problem = language_plan([2, 6], new=900, max_position_embeddings=1024).problem
    pins = Constraints(source="d0", pin={"embed": "d0", "block.1": "d1", "head": "d1"})
    return planner.solve(problem.model_copy(update={"constraints": pins}), strategy="pipeline")


@pytest.mark.parametrize("policy", ["retry", "replan"])
def test_a_language_model_goes_on_with_the_tokens_it_has(long_language: Plan, policy: str) -> None:
    report = execute(long_language, repeat=1, timeout_s=120, on_fault=policy, progress=Killer(1, 0.5))  # type: ignore[arg-type]
    assert report.output is not None
    assert report.output.equal
    (recovery,) = report.recoveries
    assert recovery.device == "d1"
    assert "SIGKILL" in recovery.reason
    assert recovery.resumed_from.startswith("after token")
    assert recovery.equal, "prefilling the tokens gives the same continuation"
    assert ("d1" in recovery.devices) == (policy == "retry")
    assert (report.replanned is not None) == (policy == "replan")
    assert recovery.restart_s > 0
    assert (recovery.predicted_rest_s is not None) == (policy == "replan")
    assert ("d1" in [device.device for device in report.devices]) == (policy == "retry")


def test_a_stopped_worker_is_lost_after_the_time_given(long_language: Plan) -> None:
    report = execute(
        long_language, repeat=1, timeout_s=120, on_fault="replan", stall_s=2.0, check=False,
        progress=Killer(1, 0.5, "suspend"),
    )  # fmt: skip
    (recovery,) = report.recoveries
    assert recovery.device == "d1"
    assert "SIGSTOP" in recovery.reason


@pytest.mark.parametrize("policy", ["retry", "replan"])
def test_a_diffusion_run_goes_on_from_the_latent(diffusion_plan, policy: str) -> None:  # noqa: F811
    plan = diffusion_plan([1, 40, 81, 82], [None, "small", "large", None], steps=80)
    stages = [
        stage.model_copy(update={"device": name})
        for stage, name in zip(plan.stages, ["d0", "d0", "d1", "d0"], strict=True)
    ]
    plan = plan.model_copy(update={"stages": stages})
    # The second denoising stage is half of the run: it is under way at three quarters.
    report = execute(plan, repeat=1, timeout_s=120, on_fault=policy, progress=Killer(1, 0.75))  # type: ignore[arg-type]
    (recovery,) = report.recoveries
    assert recovery.resumed_from == "from cut 40"
    assert report.output is not None
    assert report.output.equal
    if policy == "retry":
        assert recovery.equal, "bitwise, since the latent is all there is"
        assert recovery.predicted_rest_s is None
    else:  # what is left has a plan of its own, which may use other denoisers
        assert "d1" not in recovery.devices
        assert recovery.predicted_rest_s is not None
        assert recovery.predicted_rest_s < recovery.predicted_latency_s


def test_a_lost_source_ends_the_run(long_language: Plan) -> None:
    with pytest.raises(ExecutionError, match="source"):
        execute(long_language, repeat=1, timeout_s=60, on_fault="replan", progress=Killer(0, 0.5))


def test_a_worker_that_always_fails_ends_the_run() -> None:
    plan = toy_plan(("phone", 3), ("server", 6), fault="raise", stage=1, round=0)
    with pytest.raises(ExecutionError, match="the toy is broken"):
        execute(plan, repeat=1, timeout_s=60, on_fault="retry", _command=toy.COMMAND)


def test_recovery_and_slots_exclude_each_other() -> None:
    with pytest.raises(InputError, match="one request at a time"):
        execute(toy_plan(("phone", 6)), on_fault="retry", in_flight=3)
    with pytest.raises(InputError, match="stall_s"):
        execute(toy_plan(("phone", 6)), stall_s=0.1)


def test_what_is_left_of_a_plan() -> None:
    plan = toy_plan(("phone", 2), ("server", 6), rounds=5)
    tokens = [Handoff(request=0, purpose="loop", cut=6, round=r, data="") for r in (1, 2)]
    load = resumed_plan(plan, tokens).problem.workload
    assert (load.prompt_tokens, load.new_tokens) == (12, 3)
    rest = resumed_plan(plan, [Handoff(request=0, purpose="cut", cut=4, round=0, data="")])
    assert [(s.index, s.device, s.start, s.stop) for s in rest.stages] == [(0, "server", 4, 6)]
    assert resumed_plan(plan, []) is plan


def test_a_problem_without_a_device_keeps_its_source() -> None:
    plan = toy_plan(("phone", 2), ("server", 6))
    problem = without_device(plan, "server")
    assert [device.name for device in problem.devices] == ["phone", "laptop"]
    assert problem.constraints.source == "phone"
