"""Layout, traces, messages, quotas and report figures, by hand and without processes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from edgeopt.errors import InputError
from edgeopt.executor import memory
from edgeopt.executor.layout import Layout
from edgeopt.executor.messages import Job, Trace, dump_job, parse_event
from edgeopt.executor.quota import cpu_quota
from edgeopt.executor.trace import times_of
from edgeopt.report.data import Comparison, Samples
from tests.edgeopt.executor.plans import toy_plan


def test_layout_puts_the_source_first_and_joins_stages_of_a_device() -> None:
    layout = Layout.of(toy_plan(("phone", 1), ("server", 3), ("phone", 6), source="laptop"))
    assert [(host.device, host.stages) for host in layout.hosts] == [
        ("laptop", ()),
        ("phone", (0, 2)),
        ("server", (1,)),
    ]
    assert [(b.purpose, b.cut, b.sender, b.receiver) for b in layout.boundaries] == [
        ("input", 0, 0, 1),
        ("cut", 1, 1, 2),
        ("cut", 3, 2, 1),
        ("output", 6, 1, 0),
        ("loop", 6, 1, 1),
    ]
    assert layout.arriving(0, 0).purpose == "input"
    assert layout.arriving(0, 1).purpose == "loop"
    assert layout.leaving(2, last_round=False).purpose == "loop"
    assert layout.leaving(2, last_round=True).purpose == "output"


def test_layout_refuses_what_cannot_be_run() -> None:
    plan = toy_plan(("phone", 6))
    stage = plan.stages[0].model_copy(update={"device": "moon"})
    with pytest.raises(InputError, match="moon"):
        Layout.of(plan.model_copy(update={"stages": [stage]}))


def test_times_add_up_over_rounds() -> None:
    layout = Layout.of(toy_plan(("phone", 2), ("server", 6), rounds=2))
    phone = Trace(
        request=0, warmup=False, start=10.0, stop=10.9, computes=[(0, 0, 10.0, 10.1), (0, 1, 10.5, 10.55)],
        sends=[(1, 0, 400, 10.1), (1, 1, 40, 10.55)], receives=[(3, 1, 10.2, 10.45), (2, 1, 10.6, 10.9)],
    )  # fmt: skip
    server = Trace(
        request=0, warmup=False, computes=[(1, 0, 10.13, 10.4), (1, 1, 10.57, 10.8)],
        sends=[(3, 1, 8, 10.41), (2, 1, 16, 10.82)], receives=[(1, 0, 9.5, 10.12), (1, 1, 10.42, 10.56)],
    )  # fmt: skip
    times = times_of(layout, {0: phone, 1: server})
    assert times.latency_s == pytest.approx(0.9)
    assert times.first_round_s == pytest.approx(0.4)
    assert times.compute_s[0] == pytest.approx([0.1, 0.05])
    assert times.total_compute_s == pytest.approx(0.65)
    assert times.moved[1].seconds == pytest.approx(0.02 + 0.01)
    assert (times.moved[1].num_bytes, times.moved[1].messages) == (440, 2)
    assert times.moved[3].seconds == pytest.approx(0.04)
    assert times.moved[2].seconds == pytest.approx(0.08)
    assert times.transfer_s == pytest.approx(0.15)
    assert times.waiting_s[0] == pytest.approx(0.25 + 0.3)
    assert times.waiting_s[1] == pytest.approx(0.12 + 0.14)  # what it waited before the request began does not count
    with pytest.raises(ValueError, match="sent and received"):
        times_of(layout, {0: phone.model_copy(update={"receives": []}), 1: server})
    with pytest.raises(ValueError, match="stages"):
        times_of(layout, {0: phone})


def test_a_job_survives_its_way() -> None:
    plan = toy_plan(("phone", 6))
    assert math.isinf(plan.throughput_per_s)
    job = Job(role="worker", plan=plan, driver_pid=1, threads=1, timeout_s=1.0)
    line = dump_job(job)
    again = Job.model_validate_json(line)
    assert again == job
    assert again.plan.digest() == plan.digest()


@pytest.mark.parametrize("line", [b"", b"hello", b"{}", b'{"event":"nothing"}', b'{"event":"ready","build_s":1,"x":2}'])
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_event(line)


def test_samples_and_relative_error() -> None:
    samples = Samples.of([1.0, 2.0, 3.0, 4.0, 10.0])
    assert (samples.median, samples.spread) == (3.0, 2.0)
    assert Samples.of([2.0]).spread == 0.0
    assert Comparison.between(6.0, [5.0, 4.0, 6.0]).relative_error == pytest.approx(0.2)
    assert Comparison.between(None, [5.0]).relative_error is None
    assert Comparison.between(1.0, [0.0]).relative_error is None


def test_out_of_memory_is_recognised() -> None:
    assert memory.is_out_of_memory(MemoryError())
    assert memory.is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert memory.available_bytes() > 0


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_quota_in_cgroup_v2(tmp_path: Path) -> None:
    """A sibling of a group that has processes of its own; files are plain here, the kernel's are not."""
    write(tmp_path / "proc/self/cgroup", "0::/user/session\n")
    for folder in ("", "user", "user/session"):
        write(tmp_path / "sys/fs/cgroup" / folder / "cgroup.controllers", "cpu memory\n")
        write(tmp_path / "sys/fs/cgroup" / folder / "cgroup.subtree_control", "memory\n")
    (tmp_path / "sys/fs/cgroup/user/cgroup.subtree_control").write_text("cpu memory\n")
    (tmp_path / "sys/fs/cgroup/user/session/cgroup.subtree_control").unlink()
    (tmp_path / "sys/fs/cgroup/user/session/cgroup.subtree_control").mkdir()  # not writable, as in the kernel
    with pytest.raises(OSError, match="not empty"), cpu_quota("a b/c", 0.5, 2, root=tmp_path) as group:  # noqa: PT012
        assert group.folder.parent == tmp_path / "sys/fs/cgroup/user"
        assert group.folder.name.endswith("-a_b_c")
        assert (group.folder / "cpu.max").read_text() == "20000 20000"
        (group.folder / "cgroup.procs").write_text("")  # the kernel makes it, and lets rmdir remove it
        group.add(os.getpid())
        assert (group.folder / "cgroup.procs").read_text() == str(os.getpid())
    assert (tmp_path / "sys/fs/cgroup/user/cgroup.procs").read_text() == str(os.getpid())  # moved out before removal


def test_a_machine_without_quotas_is_refused_clearly(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"'phone'.*v1.*not mounted.*v2.*not mounted.*threads"),
        cpu_quota("phone", 0.5, 1, root=tmp_path),
    ):
        pass


@pytest.mark.root
def test_a_quota_of_this_machine_is_removed() -> None:
    try:
        with cpu_quota("phone", 0.5, 1) as group:
            assert group.folder.is_dir()
            folder = group.folder
    except InputError as error:
        pytest.skip(str(error))
    assert not folder.exists()
