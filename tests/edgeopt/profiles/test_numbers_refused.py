"""A number that is missing, negative, without unit or without source is refused with field, file and line."""

from __future__ import annotations

import json

import pytest

from edgeopt.cli import main
from edgeopt.profiles.library import roots

FILES = {"devices": "rtx-4090", "networks": "ethernet-1g", "models": "llama-3.2-1b", "problems": "home-cluster"}

CASES = [
    ("devices", "memory: 24 GiB\n", "", "memory", "is missing"),
    ("devices", "memory: 24 GiB", "memory: -24 GiB", "memory", "is negative"),
    ("devices", "memory: 24 GiB", "memory: 24", "memory", "has no unit"),
    ("devices", "float32: 82.6 TFLOP/s", "float32: -82.6 TFLOP/s", "compute.float32", "is negative"),
    ("devices", "float32: 82.6 TFLOP/s", "float32: 82.6", "compute.float32", "has no unit"),
    ("devices", "busy: 450 W", "busy: 450 J", "power.busy", "measures something else"),
    ("devices", ", basis: assumed", "", "efficiency.basis", "is missing"),
    ("devices", "\nsource:", "\ndescription2:", "source", "is missing"),
    ("devices", "\nsource:", "\ndescription2:", "memory", "has no source"),
    ("devices", "\nsource:", "\ndescription2:", "power.busy", "has no source"),
    ("devices", 'power.idle: "assumed: typical idle draw, not in the datasheet"', 'power.idle: ""', "idle", "is empty"),
    ("devices", "power.idle:", "power.idel:", "sources.power.idel", "no such number"),
    ("networks", "\nsource:", "\ndescription2:", "default.rate", "has no source"),
    ("models", "\nsource:", "\ndescription2:", "token", "has no source"),
    ("networks", "rate: 941 Mbit/s, ", "", "default.rate", "is missing"),
    ("networks", "rate: 941", "rate: -941", "default.rate", "is negative"),
    ("networks", "latency: 0.2 ms", "latency: 0.2", "default.latency", "has no unit"),
    ("networks", "\nsource:", "\ndescription2:", "source", "is missing"),
    ("models", "token: 8 B\n", "", "token", "is missing"),
    ("models", "token: 8 B", "token: -8 B", "token", "is negative"),
    ("models", "token: 8 B", "token: 8", "token", "has no unit"),
    ("models", "\nsource:", "\ndescription2:", "source", "is missing"),
    ("problems", "memory: 10 GiB", "memory: -10 GiB", "devices[2].memory", "is negative"),
    ("problems", "memory: 10 GiB", "memory: 10", "devices[2].memory", "has no unit"),
    ("problems", "prompt_tokens: 512, ", "", "workload.prompt_tokens", "is missing"),
    ("problems", "objective: latency", "objective: latency\nconstraints2: 1", "constraints2", "unknown key"),
]


@pytest.mark.parametrize(("folder", "old", "new", "field", "message"), CASES)
def test_refused_through_the_command(folder, old, new, field, message, tmp_path, capsys):
    text = (roots()[-1] / folder / f"{FILES[folder]}.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "changed.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert main(["profiles", "validate", str(path), "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)["error"]["findings"]
    # A misspelled key in the place of the missing one is a second finding, and says so itself.
    found = [one for one in findings if one["field"].endswith(field) and message in one["message"]]
    assert found, findings
    assert found[0]["file"].endswith("changed.yaml")
    assert found[0]["line"] >= 1
    assert found[0]["mend"]
