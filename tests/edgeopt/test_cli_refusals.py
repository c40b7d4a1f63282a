"""Bad input through the whole command: exit code 2, a message that names the field and the mend, no file written."""

from __future__ import annotations

import json

import pytest

from edgeopt.cli import main
from tests.edgeopt.cli_cases import PROBLEM

BLOCK = "    - {name: block, count: 4, weights: 1 GB, flop_per_token: 500 MFLOP,\n"
LINKS = "  links: [{between: [phone, laptop], rate: 0 Mbit/s, latency: 2 ms}]\n"

#: What is wrong → (what is replaced, by what, words that the message must hold).
CASES = {
    "missing field": ("    memory: 2 GB\n", "", ["memory", "problem.yaml:"]),
    "wrong unit": ("memory: 2 GB", "memory: 2 Mbit/s", ["memory", "2 Mbit/s"]),
    "no unit": ("memory: 2 GB", "memory: 2000000000", ["memory", "2000000000"]),
    "negative": ("memory: 2 GB", "memory: -2 GB", ["memory", "-2 GB"]),
    "not a number": ("memory: 2 GB", "memory: .nan", ["memory", "nan"]),
    "unknown key": ("    memory: 2 GB\n", "    memroy: 2 GB\n", ["memroy", "memory"]),
    "unknown device": ("devices:\n", "devices:\n  - rtx-4091\n", ["rtx-4091", "rtx-4090"]),
    "duplicate name": ("  - name: laptop", "  - name: phone", ["phone", "name"]),
    "zero bandwidth": ("objective: latency", f"{LINKS}objective: latency", ["rate", "0 Mbit/s"]),
    "unknown source": ("objective: latency", "objective: latency\nconstraints: {source: tablet}", ["source", "tablet"]),
    "traversal": ("model:\n", "model: ../../etc/passwd\nother:\n", ["../../etc/passwd"]),
}


def refused(tmp_path, capsys, text: str) -> str:
    """Solve a file that must be refused; return the message."""
    path, target = tmp_path / "problem.yaml", tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    assert main(["solve", str(path), "-o", str(target)]) == 2
    message = capsys.readouterr().err
    assert main(["solve", str(path), "-o", str(target), "--json"]) == 2
    assert "error" in json.loads(capsys.readouterr().out)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["problem.yaml"], "nothing may be written"
    return message


@pytest.mark.parametrize("case", CASES)
def test_refused_with_field_and_mend(case, tmp_path, capsys):
    old, new, words = CASES[case]
    assert old in PROBLEM
    message = refused(tmp_path, capsys, PROBLEM.replace(old, new, 1))
    assert [word for word in words if word not in message] == [], message
    assert "Traceback" not in message


def test_empty_device_list(tmp_path, capsys):
    start, rest = PROBLEM.index("devices:\n"), PROBLEM.index("network:\n")
    message = refused(tmp_path, capsys, PROBLEM[:start] + "devices: []\n" + PROBLEM[rest:])
    assert "devices" in message


def test_model_without_layers(tmp_path, capsys):
    start, rest = PROBLEM.index("  layers:\n"), PROBLEM.index("strategy: pipeline")
    message = refused(tmp_path, capsys, PROBLEM[:start] + "  layers: []\n" + PROBLEM[rest:])
    assert "layers" in message


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "", "42\n", "a: [1, 2\n"])
def test_yaml_that_is_no_mapping(tmp_path, capsys, text):
    assert "problem.yaml" in refused(tmp_path, capsys, text)


def test_a_hundred_megabytes_of_brackets(tmp_path, capsys):
    message = refused(tmp_path, capsys, "[" * 100_000_000)
    assert "problem.yaml" in message
    assert len(message) < 1000


def test_deep_nesting_within_the_size_limit(tmp_path, capsys):
    assert "problem.yaml" in refused(tmp_path, capsys, "[" * 100_000)


@pytest.mark.parametrize("name", ["../devices/rtx-4090", "..\\rtx-4090", "rtx-4090/../../x", "a\x00b"])
def test_profile_name_that_climbs(tmp_path, capsys, name):
    entry = json.dumps(name)
    message = refused(tmp_path, capsys, PROBLEM.replace("devices:\n", f"devices:\n  - {entry}\n", 1))
    assert "devices" in message


def test_missing_link_that_every_plan_needs_names_the_limit(tmp_path, capsys):
    """A problem that is well formed and has no plan ends with 1, and says which limit binds."""
    path, target = tmp_path / "problem.yaml", tmp_path / "plan.yaml"
    path.write_text(PROBLEM.replace("  default: {rate: 100 Mbit/s, latency: 2 ms}\n", ""), encoding="utf-8")
    assert main(["solve", str(path), "-o", str(target)]) == 1
    message = capsys.readouterr().err
    assert "link" in message or "memory" in message
    assert not target.exists()
