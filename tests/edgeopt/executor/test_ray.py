"""Plans on a Ray cluster: one of this machine, started once for all tests here."""

from __future__ import annotations

import contextlib
import importlib.util
import threading

import psutil
import pytest

from edgeopt import planner
from edgeopt.errors import ExecutionError, MissingDependencyError
from edgeopt.executor import execute
from edgeopt.executor.launchers import ray as launcher
from edgeopt.profiles.problem import Constraints
from tests.edgeopt.executor.plans import toy_plan
from tests.edgeopt.programs.conftest import diffusion_plan, language_plan  # noqa: F401 (fixtures)


def test_without_ray_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None if name == "ray" else name)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeopt\[ray\]'"):
        execute(toy_plan(("phone", 6)), on="ray")


@pytest.fixture(scope="module")
def cluster():
    """The cluster that ``--on ray`` would start for itself; three devices have room in it."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    ray = launcher.start_cluster(4)
    yield ray
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.torch
@pytest.mark.processes
def test_a_language_model_on_ray(cluster, language_plan) -> None:  # noqa: F811
    pytest.importorskip("transformers")
    problem = language_plan([2, 6]).problem
    pins = Constraints(source="d0", pin={"embed": "d0", "block.1": "d1", "head": "d1"})
    plan = planner.solve(problem.model_copy(update={"constraints": pins}), strategy="pipeline")
    report = execute(plan, on="ray", repeat=1, timeout_s=200)
    assert report.output is not None
    assert (report.output.equal, report.output.kind) == (True, "tokens")
    assert report.launcher == "ray"
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}, "Ray's own processes"
    assert any("d0 on 127.0.0.1, d1 on 127.0.0.1" in note for note in report.notes)


@pytest.mark.ray
@pytest.mark.torch
@pytest.mark.processes
def test_a_diffusion_model_on_ray(cluster, diffusion_plan) -> None:  # noqa: F811
    pytest.importorskip("diffusers")
    plan = diffusion_plan([1, 3, 7, 8], [None, "small", "large", None], steps=6)
    stages = [
        stage.model_copy(update={"device": name})
        for stage, name in zip(plan.stages, ["d0", "d0", "d1", "d0"], strict=True)
    ]
    report = execute(plan.model_copy(update={"stages": stages}), on="ray", repeat=1, warmup=0, timeout_s=200)
    assert report.output is not None
    assert (report.output.equal, report.output.kind, report.output.max_abs_diff) == (True, "bitwise", 0)


@pytest.mark.ray
@pytest.mark.torch
@pytest.mark.processes
def test_parties_that_talk_freely_on_ray(cluster) -> None:
    from tests.edgeopt.executor import toy_parties

    plan = toy_parties.parties_plan("phone", "laptop", "server")
    report = execute(plan, on="ray", repeat=2, warmup=0, timeout_s=200, seed=3, _command=toy_parties.COMMAND)
    assert report.output is not None
    assert report.output.equal
    assert report.output.repeats_equal
    assert {moved.messages for moved in report.transfers if moved.purpose == "mix"} == {toy_parties.ROUNDS}
    assert report.launcher == "ray"


@pytest.mark.ray
@pytest.mark.torch
@pytest.mark.processes
def test_a_killed_worker_on_ray_is_named_and_none_is_left(cluster) -> None:
    from tests.edgeopt.executor import toy

    def workers() -> list[psutil.Process]:
        """Those of this run; a dead one may be a zombie until Ray looks after its children."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "--device" in process.cmdline():
                    found.append(process)
        return found

    def progress(line: str) -> None:
        if line.startswith("workers ready"):
            victim = next(p for p in workers() if "server" in p.cmdline())
            threading.Timer(0.3, victim.kill).start()

    plan = toy_plan(("phone", 3), ("server", 6), rounds=2000, sleep_s=0.02)
    with pytest.raises(ExecutionError) as caught:
        execute(plan, on="ray", check=False, timeout_s=200, progress=progress, _command=toy.COMMAND)
    assert (caught.value.stage, caught.value.device) == (1, "server")
    psutil.wait_procs(workers(), timeout=10)
    assert workers() == []
    assert cluster.is_initialized(), "a cluster that was there stays"


@pytest.mark.ray
def test_a_sweep_on_ray_has_the_rows_of_a_local_one(cluster, tmp_path) -> None:
    from edgeopt.executor.points import on_ray
    from edgeopt.questions.grid import parse_grid
    from edgeopt.questions.journal import Journal
    from edgeopt.questions.sweep import Options, head_of, rows, sweep
    from tests.edgeopt.factories import text_problem

    grid = parse_grid(text_problem(), ["network.default.rate=1..64 MB/s log 5", "devices[server].memory=1, 3, 5 GB"])
    local = rows(grid, sweep(grid, Options()))
    assert {row["status"] for row in local} == {"optimal", "infeasible"}
    path = tmp_path / "rows.csv.journal"
    with Journal(path, head_of(grid, Options())) as journal:
        assert rows(grid, sweep(grid, Options(), journal, on_ray)) == local
    with Journal(path, head_of(grid, Options())) as journal:
        order = list(journal.records)
        assert all(sorted(line, key=order.index) == line for line in grid.lines()), "lines are kept from their start"
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(content[:8]))
    with Journal(path, head_of(grid, Options())) as journal:
        assert len(journal.records) == 7
        assert rows(grid, sweep(grid, Options(), journal, on_ray)) == local
    assert cluster.is_initialized(), "a cluster that was there stays"


def test_a_sweep_without_ray_names_the_extra(monkeypatch) -> None:
    from edgeopt.executor import points

    monkeypatch.setattr(points.importlib.util, "find_spec", lambda name: None if name == "ray" else name)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeopt\[ray\]'"), points.on_ray(None, (), None):
        pass
