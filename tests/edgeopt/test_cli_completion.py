"""What a shell is told when it completes a command line, through the environment variable that it sets."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from edgeopt.cli import completion, main


@pytest.fixture
def completed(monkeypatch, capsys):
    """Return what is offered for the last word of a line."""

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_EDGEOPT_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        with pytest.raises(SystemExit):
            main([])
        return capsys.readouterr().out.split()

    return ask


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("edgeopt sw", ["sweep"]),
        ("edgeopt profiles ", ["list", "show", "validate", "schema"]),
        ("edgeopt solve home", ["home-cluster"]),
        ("edgeopt sweep home", ["home-cluster"]),
        ("edgeopt compare home", ["home-cluster"]),
        ("edgeopt explain home", ["home-cluster"]),
        ("edgeopt solve ./", []),
        ("edgeopt solve home-cluster --strategy ", ["auto", "multi_stage", "pipeline"]),
        ("edgeopt solve home-cluster --backend ", ["exact", "pulp", "ortools", "cvxpy"]),
        ("edgeopt compare home-cluster --backend p", ["pulp"]),
        ("edgeopt execute plan.yaml --on t", ["torchrun"]),
        ("edgeopt export plan.yaml --to t", ["torch-pipelining", "transformers"]),
        ("edgeopt execute plan.yaml --on-fault r", ["retry", "replan"]),
        ("edgeopt sweep home-cluster --on r", ["ray"]),
        ("edgeopt sweep home-cluster --over workload.s", ["workload.steps="]),
        ("edgeopt init --model llama-3.2", ["llama-3.2-1b", "llama-3.2-3b"]),
        ("edgeopt init --device rtx-40", ["rtx-4060", "rtx-4090"]),
        ("edgeopt init --device desktop=rtx-40", ["desktop=rtx-4060", "desktop=rtx-4090"]),
        ("edgeopt init --network ethernet-1", ["ethernet-100m", "ethernet-10g", "ethernet-1g"]),
        ("edgeopt init --objective th", ["throughput"]),
        ("edgeopt profiles show rtx-40", ["rtx-4060", "rtx-4090"]),
        ("edgeopt profiles list ", ["device", "model", "network", "problem"]),
        ("edgeopt profiles schema n", ["network"]),
    ],
)
def test_offers(completed, line, offered):
    found = completed(line)
    if line.endswith("--strategy "):  # other packages may add theirs
        found = [one for one in found if one in offered]
    assert found == offered


def test_descriptions_come_along_where_the_shell_shows_them(monkeypatch, capsys):
    monkeypatch.setenv("_EDGEOPT_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "edgeopt sweep home-cluster --over workload.b")
    with pytest.raises(SystemExit):
        main([])
    assert '"workload.batch=":"requests at once"' in capsys.readouterr().out


def test_what_fails_completes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("edgeopt.profiles.library.known_names", lambda kind: 1 / 0)
    assert completion.problems("home") == []
    assert completion.devices("desktop=rtx") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_shown(shell, monkeypatch, capsys):
    monkeypatch.setenv("_EDGEOPT_COMPLETE", f"source_{shell}")
    with pytest.raises(SystemExit):
        main([])
    printed = capsys.readouterr().out
    assert "_EDGEOPT_COMPLETE" in printed
    assert "edgeopt" in printed


def test_completing_and_helping_stay_fast():
    """Of processor time; a name is completed without torch, solvers or pictures, the help without anything."""
    environment = {
        **os.environ,
        "_EDGEOPT_COMPLETE": "complete_bash",
        "COMP_WORDS": "edgeopt solve ho",
        "COMP_CWORD": "2",
    }
    for variables, limit_s in ((environment, 1.0), (dict(os.environ), 0.5)):
        taken = []
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            words = [sys.executable, "-m", "edgeopt", "--help"]
            done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=60)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            assert ("home-cluster" if "COMP_WORDS" in variables else "--install-completion") in done.stdout
        assert min(taken) < limit_s
