"""Every number has a source, and every source a number; else the number is named with field, file and line."""

from __future__ import annotations

import pytest

from edgeopt.errors import InputError
from edgeopt.profiles import dump_yaml, load, load_device, load_problem, validate
from edgeopt.profiles.library import roots
from edgeopt.profiles.reader import read_document
from edgeopt.profiles.sources import covered
from tests.edgeopt.profiles.test_resolve import DEVICE, problem_of

SHIPPED = [
    roots()[-1] / folder / f"{name}.yaml"
    for folder, name in (
        ("devices", "rtx-4090"),
        ("networks", "ethernet-1g"),
        ("models", "llama-3.2-1b"),
        ("models", "dit"),
    )
]
LINES = {text.partition(":")[0]: line for line, text in enumerate(DEVICE.splitlines(), start=1)}
NUMBERS = {
    "compute.float32", "memory", "memory_bandwidth", "launch_overhead", "efficiency.compute",
    "efficiency.memory_bandwidth", "power.busy", "power.idle",
}  # fmt: skip


def refused(tmp_path, text):
    path = tmp_path / "board.yaml"
    path.write_text(text)
    findings = validate(path)
    assert all(finding.file.endswith("board.yaml") and finding.mend for finding in findings)
    return {finding.field: finding for finding in findings}


def test_without_a_source_every_number_is_named_with_its_line(tmp_path):
    found = refused(tmp_path, DEVICE.replace("source: numbers made for a test\n", ""))
    assert found.keys() == NUMBERS | {"source"}
    for field in NUMBERS:
        assert found[field].message == "has no source"
        assert found[field].line == LINES[field.partition(".")[0]] - 1
        assert field in found[field].mend
    assert found["source"].message == "is missing"


def test_a_number_with_a_source_of_its_own_is_not_named(tmp_path):
    own = "sources: {memory: a sheet, power: measured, efficiency.compute: assumed}"
    found = refused(tmp_path, DEVICE.replace("source: numbers made for a test", own))
    assert found.keys() == NUMBERS - {"memory", "power.busy", "power.idle", "efficiency.compute"} | {"source"}


@pytest.mark.parametrize("text", ['""', '"  "', "ab", '"\\t-"'])
def test_a_source_that_says_nothing_is_refused(tmp_path, text):
    found = refused(tmp_path, f"{DEVICE}sources:\n  memory: a sheet\n  power.busy: {text}\n")
    assert found.keys() == {"sources.power.busy"}
    assert found["sources.power.busy"].line == 12
    assert "say where the number comes from" in found["sources.power.busy"].mend
    assert refused(tmp_path, DEVICE.replace("numbers made for a test", text)).keys() == {"source"}


@pytest.mark.parametrize(
    ("key", "near"), [("memroy", "'memory'"), ("power.bussy", "'power.busy'"), ("compute.int8", ""), ("timings", "")]
)
def test_a_source_for_nothing_is_refused(tmp_path, key, near):
    found = refused(tmp_path, f"{DEVICE}sources:\n  {key}: a sheet\n")
    assert found.keys() == {f"sources.{key}"}
    assert found[f"sources.{key}"].line == 11
    assert found[f"sources.{key}"].message == "there is no such number in this file"
    assert near in found[f"sources.{key}"].mend


def test_keys_speak_for_fields_items_and_all_of_a_kind():
    data = {
        "memory": "1 B", "variants": {"flux.1-dev": {"flop": "1 FLOP"}, "b": {"flop": "2 FLOP"}}, "sources": {},
        "layers": [{"name": "head", "weights": "1 B"}, {"weights": "2 B"}], "power": None,
    }  # fmt: skip

    def places(key):
        return set(covered(data, key))

    assert places("memory") == {("memory",)}
    assert places("variants.flux.1-dev.flop") == {("variants", "flux.1-dev", "flop")}
    assert places("variants.*.flop") == {("variants", name, "flop") for name in ("flux.1-dev", "b")}
    assert places("layers.head.weights") == places("layers[0].weights") == {("layers", 0, "weights")}
    assert places("layers[*].weights") == {("layers", 0, "weights"), ("layers", 1, "weights")}
    assert places("power") == places("sources") == places("variants.c") == places("mem") == set()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_without_its_source_no_shipped_file_is_read(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    assert validate(path) == []
    kept = [line for line in text.splitlines(keepends=True) if not line.startswith("source:")]
    assert len(kept) == text.count("\n") - 1
    found = refused(tmp_path, "".join(kept))
    assert found.pop("source").message == "is missing"
    # Numbers with entries of their own keep them; all others are named.
    own = [key.replace("*", "") for key in read_document(path).data.get("sources", {})]
    assert not [field for field in found if any(field == key for key in own)]
    assert all("no source" in finding.message for finding in found.values())


def test_a_change_in_a_problem_takes_sources_with_it(tmp_path):
    margin = "margin: {workspace: 1 GiB, fragmentation: 0.1, basis: assumed}\n"
    sourced = f"{DEVICE}sources: {{power.idle: a guess, memory: a sheet}}\n{margin}"
    (tmp_path / "mine.yaml").write_text(sourced)
    (device,) = problem_of(tmp_path, "  - {profile: mine.yaml, name: pi, power: null, memory: 2 GiB}\n").devices
    assert device.power is None
    assert device.sources == {"memory": "problem file problem.yaml"}
    assert device.margin is None, "memory that a problem states is what plans may use"
    both = "  - {profile: mine.yaml, memory: 2 GiB, margin: {workspace: 300 MiB}}\n"
    (device,) = problem_of(tmp_path, both).devices
    assert (device.margin.workspace, device.margin.fragmentation) == (300 * 2**20, 0.1)
    (device,) = problem_of(tmp_path, "  - mine.yaml\n").devices
    assert device.margin == load_device(tmp_path / "mine.yaml").margin


def test_what_a_changed_device_says_can_be_written_and_read_again(tmp_path):
    problem = problem_of(tmp_path, "  - {profile: laptop-cpu, power: null, memory: 2 GiB, runtime: {threads: 1}}\n")
    again = tmp_path / "again.yaml"
    again.write_text(dump_yaml(problem))
    assert load_problem(again) == problem
    (tmp_path / "device.yaml").write_text(dump_yaml(problem.devices[0]))
    assert load(tmp_path / "device.yaml") == problem.devices[0]


def test_a_wrong_source_in_a_profile_is_found_through_a_problem(tmp_path):
    (tmp_path / "odd.yaml").write_text(DEVICE + "sources: {memroy: a sheet}\n")
    with pytest.raises(InputError) as error:
        problem_of(tmp_path, "  - {profile: odd.yaml, memory: 2 GiB}\n")
    (finding,) = error.value.findings
    assert (finding.field, finding.line) == ("sources.memroy", 10)
    assert finding.file.endswith("odd.yaml")
