"""Plans and profiles survive the way to a file and back, bit for bit."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.errors import InputError
from edgeopt.plan import Interval, Plan, Stage, Transfer
from edgeopt.profiles import (
    dump_plan,
    dump_yaml,
    list_profiles,
    load,
    load_device,
    load_plan,
    load_problem,
    save_plan,
    validate,
)
from edgeopt.profiles.device import Device
from tests.edgeopt.factories import image_problem, text_problem

FINITE = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
COUNTS = st.integers(0, 1000)
STAGES = st.builds(
    Stage,
    index=COUNTS,
    device=NAMES,
    variant=st.none() | NAMES,
    start=COUNTS,
    stop=COUNTS,
    elements=TEXT,
    compute_s=FINITE,
    transfer_s=FINITE,
    transfer_bytes=FINITE,
    memory_bytes=FINITE,
)
TRANSFERS = st.builds(
    Transfer,
    purpose=st.sampled_from(["input", "cut", "loop", "output"]),
    cut=COUNTS,
    source=NAMES,
    destination=NAMES,
    bytes=FINITE,
    messages=FINITE,
    seconds=FINITE,
)
TIMING = st.fixed_dictionaries(
    {
        "model": NAMES,
        "phase": st.just("decode"),
        "dtype": st.just("float32"),
        "batch": st.integers(1, 9),
        "context": COUNTS,
        "unit": st.sampled_from(["us", "ms", "s"]),
        "repeats": st.integers(1, 99),
        "source": st.just("a test"),
        "elements": st.lists(st.floats(0, 1e9), min_size=1, max_size=9),
    }
)
DEVICES = st.fixed_dictionaries(
    {
        "name": NAMES,
        "source": st.text(min_size=3, max_size=30).filter(lambda text: text.isprintable() and len(text.strip()) >= 3),
        "memory": POSITIVE,
        "compute": st.dictionaries(st.sampled_from(["float32", "int8", "bfloat16"]), POSITIVE, min_size=1),
        "memory_bandwidth": POSITIVE,
        "launch_overhead": POSITIVE,
        "description": TEXT,
        "efficiency": st.just({"compute": 0.5, "memory_bandwidth": 1.0, "basis": "measured"}),
        "power": st.none() | st.fixed_dictionaries({"busy": st.none() | POSITIVE, "idle": st.none() | POSITIVE}),
        "timings": st.lists(TIMING, max_size=3),
    }
).map(Device.model_validate)


def plan_of(problem, **fields):
    return Plan(
        edgeopt_version="0.1.0",
        problem=problem,
        strategy="pipeline",
        backend="exact",
        status="optimal",
        bound=1.0,
        gap=0.0,
        runtime_s=0.1,
        cuts=[1, 2],
        devices=[0, 1],
        variants=[0, 0],
        **{"objective": 1.0, "latency_s": 1.0, "throughput_per_s": 2.0, "stages": [], "transfers": []} | fields,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    stages=st.lists(STAGES, max_size=4),
    transfers=st.lists(TRANSFERS, max_size=4),
    objective=FINITE,
    energy_j=st.none() | FINITE,
    metrics=st.dictionaries(TEXT, FINITE, max_size=3),
    notes=st.lists(TEXT, max_size=3),
    timeline=st.lists(st.builds(Interval, lane=NAMES, label=TEXT, start_s=FINITE, stop_s=FINITE), max_size=3),
    throughput_per_s=st.just(math.inf) | FINITE,
    suffix=st.sampled_from(["yaml", "json"]),
    device=DEVICES,
    image=st.booleans(),
)
def test_a_plan_comes_back_equal(folder, suffix, device, image, **fields):
    problem = (image_problem if image else text_problem)()
    problem = problem.model_copy(update={"devices": [*problem.devices, device.model_copy(update={"name": "third"})]})
    plan = plan_of(problem, **fields)
    path = folder / f"plan.{suffix}"
    save_plan(plan, path)
    back = load_plan(path)
    assert back == plan
    assert back.digest() == plan.digest()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(DEVICES)
def test_a_device_comes_back_equal(folder, device):
    path = folder / "device.yaml"
    path.write_text(dump_yaml(device), encoding="utf-8")
    assert load_device(path) == device


def test_everything_in_the_library_comes_back_equal(tmp_path):
    for entry in list_profiles():
        loaded = load(entry["name"], entry["kind"])
        path = tmp_path / "copy.yaml"
        path.write_text(dump_yaml(loaded), encoding="utf-8")
        again = load_problem(path) if entry["kind"] == "problem" else load(path, entry["kind"])
        assert again == loaded
        assert validate(path) == []


def test_the_decision_stands_on_top_and_one_stage_on_a_line():
    stage = Stage(
        index=0,
        device="phone",
        variant=None,
        start=0,
        stop=6,
        elements="all",
        compute_s=0.1,
        transfer_s=0,
        transfer_bytes=0,
        memory_bytes=8,
    )
    lines = dump_plan(plan_of(text_problem(), stages=[stage])).splitlines()
    assert lines[0] == "format: edgeopt-plan/1"
    assert any(line.startswith('  - {"index": 0, "device": "phone"') for line in lines)
    assert lines.index("problem:") > lines.index("stages:")
    assert '  "source"' not in lines


def test_large_plans_load_quickly(tmp_path):
    timing = {
        "model": "other",
        "phase": "decode",
        "dtype": "float32",
        "batch": 1,
        "context": 8,
        "unit": "ms",
        "repeats": 5,
        "source": "a test",
        "elements": [i / 7 for i in range(40)],
    }
    problem = text_problem()
    measured = problem.devices[0].model_dump() | {"timings": [timing] * 60}
    devices = [Device.model_validate(measured | {"name": f"d{i}"}) for i in range(10)]
    plan = plan_of(problem.model_copy(update={"devices": devices}))
    path = tmp_path / "plan.yaml"
    save_plan(plan, path)
    assert path.stat().st_size > 400_000
    start = time.perf_counter()
    assert load_plan(path) == plan
    assert time.perf_counter() - start < 0.5


class TestRefusals:
    def refuse(self, tmp_path, old, new):
        text = dump_plan(plan_of(text_problem()))
        assert old in text
        path = tmp_path / "plan.yaml"
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(InputError) as refused:
            load_plan(path)
        return refused.value.findings[0], text.replace(old, new, 1).splitlines()

    def test_another_format_names_both_versions(self, tmp_path):
        finding, _ = self.refuse(tmp_path, "edgeopt-plan/1", "edgeopt-plan/9")
        assert (finding.field, finding.line) == ("format", 1)
        assert "'edgeopt-plan/9'" in finding.message
        assert "edgeopt-plan/1" in finding.message
        assert "0.1.0" in finding.mend

    def test_no_plan_at_all(self, tmp_path):
        finding, _ = self.refuse(tmp_path, "format: edgeopt-plan/1", "")
        assert "this is no plan" in finding.message
        assert "edgeopt solve -o" in finding.mend

    def test_a_wrong_field_has_its_line(self, tmp_path):
        finding, lines = self.refuse(tmp_path, "latency_s: 1.0", "latency_s: soon")
        assert finding.field == "latency_s"
        assert lines[finding.line - 1] == "latency_s: soon"

    def test_a_changed_problem_is_checked(self, tmp_path):
        finding, lines = self.refuse(tmp_path, '"name": "server"', '"name": "phone"')
        assert finding.field == "problem.devices[1].name"
        assert '"launch_overhead"' in lines[finding.line - 1]

    def test_a_bare_number_is_refused(self, tmp_path):
        finding, _ = self.refuse(tmp_path, '"memory": "3 GB"', '"memory": 3')
        assert finding.field == "problem.devices[0].memory"
        assert "no unit" in finding.message

    def test_yaml_by_another_hand_is_read_too(self, tmp_path):
        from ruamel.yaml import YAML

        plan = plan_of(text_problem())
        with (tmp_path / "plan.yaml").open("w") as stream:
            YAML(typ="safe", pure=True).dump(plan.model_dump(mode="json", by_alias=True), stream)
        assert load_plan(tmp_path / "plan.yaml") == plan
