"""Every error ends with a command that can be typed, and that helps."""

from __future__ import annotations

import json
import shlex

import pytest
import typer.main

from edgeopt.cli import app, main
from tests.edgeopt.cli_cases import PROBLEM
from tests.edgeopt.test_cli_refusals import CASES


def verbs(command=None, path=()):
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from verbs(child, (*path, name))


def tried(capsys):
    """Return the command that the last line of an error names."""
    last = capsys.readouterr().err.splitlines()[-1]
    word, _, command = last.partition(": ")
    assert word == "try"
    assert command.startswith("edgeopt "), command
    return shlex.split(command)[1:]


@pytest.mark.parametrize("verb", list(verbs()), ids=" ".join)
def test_of_every_verb_a_wrong_option_leads_to_its_help(verb, capsys):
    assert main([*verb, "--colour"]) == 2
    command = tried(capsys)
    assert command == [*verb, "--help"]
    assert main(command) == 0
    assert " ".join(verb) in capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_of_every_wrong_file_the_command_runs(case, tmp_path, capsys):
    old, new, _ = CASES[case]
    path = tmp_path / "problem.yaml"
    path.write_text(PROBLEM.replace(old, new, 1), encoding="utf-8")
    for verb in ("solve", "compare", "explain", "sweep") if case == "missing field" else ("solve",):
        assert main([verb, str(path), *(["--over", "workload.batch=1,2"] if verb == "sweep" else [])]) == 2
        command = tried(capsys)
        assert main(command) == (2 if command[:2] == ["profiles", "validate"] else 0), command
        printed = capsys.readouterr()
        assert printed.out or "problem.yaml" in printed.err
    assert main(["solve", str(path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["next"].startswith("edgeopt ")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["solve", "home-clutser"], "profiles list problems"),
        (["sweep", "home-clutser", "--over", "workload.batch=1,2"], "profiles list problems"),
        (["profiles", "show", "rtx-4091", "--kind", "device"], "profiles list devices"),
        (["profiles", "show", "nothing-like-it"], "profiles list"),
        (["profiles", "show", "a", "--kind", "planet"], "profiles list"),
        (["profiles", "schema", "planet"], "profiles schema --help"),
        (["init", "x.yaml", "--model", "lama-3.2-1b", "--device", "rtx-4090", "--yes"], "profiles list models"),
        (["verify", "nowhere.yaml"], "solve PROBLEM -o nowhere.yaml"),
        (["execute", "nowhere.yaml"], "solve PROBLEM -o nowhere.yaml"),
        (["diff", "a.yaml", "b.yaml"], "solve PROBLEM -o a.yaml"),
        (["solve", "{problem}", "--backend", "magic"], "solve --help"),
        (["solve", "{problem}", "--gap", "-1"], "solve --help"),
        (["solve", "{problem}", "-o", "no/plan.yaml"], "solve --help"),
        (["solve", "{flat}"], "profiles list devices"),
        (["wurst"], "--help"),
    ],
)
def test_of_every_kind_of_error(problem, tmp_path, capsys, monkeypatch, words, command):
    monkeypatch.chdir(tmp_path)
    flat = tmp_path / "flat.yaml"
    flat.write_text(PROBLEM.replace("devices:\n", "devices:\n  - rtx-4091\n"), encoding="utf-8")
    assert main([word.format(problem=problem, flat=flat) for word in words]) == 2
    assert tried(capsys) == shlex.split(command)


def test_without_a_plan_the_problem_is_shown_as_it_was_understood(problem, capsys):
    problem.write_text(PROBLEM.replace("memory: 3 GB", "memory: 1 MB"), encoding="utf-8")
    assert main(["solve", str(problem)]) == 1
    command = tried(capsys)
    assert command == ["profiles", "show", str(problem)]
    assert main(command) == 0
