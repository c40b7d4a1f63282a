"""The verb `init`: by flags, by asking on a terminal, and what it refuses."""

from __future__ import annotations

import json

import pytest

from edgeopt.cli import main
from edgeopt.profiles import load_problem
from tests.edgeopt.terminal import converse

ALL = [
    "--model", "llama-3.2-1b", "--device", "macbook-m1", "--device", "desktop=rtx-4090", "--device", "rtx-4090",
    "--device", "rtx-4090", "--network", "ethernet-1g", "--workload", "prompt_tokens=64,new_tokens=16",
    "--objective", "throughput",
]  # fmt: skip


class TestFlags:
    def test_the_file_says_what_was_given(self, tmp_path, capsys):
        target = tmp_path / "flat.yaml"
        assert main(["init", str(target), *ALL]) == 0
        printed = capsys.readouterr()
        problem = load_problem(target)
        assert problem.name == "flat"
        assert [one.name for one in problem.devices] == ["macbook-m1", "desktop", "rtx-4090", "rtx-4090-2"]
        assert (problem.model.name, problem.network.name, problem.objective) == (
            "llama-3.2-1b", "ethernet-1g", "throughput",
        )  # fmt: skip
        assert (problem.workload.prompt_tokens, problem.workload.new_tokens) == (64, 16)
        assert f"problem written to {target}" in printed.out
        assert "optimal: objective" in printed.out
        assert printed.out.splitlines()[-1] == f"next: edgeopt explain {target}"
        assert printed.err == ""

    def test_its_comments_are_true(self, tmp_path, capsys):
        """The lines that are commented out can be taken in, and the example of a changed device as well."""
        target = tmp_path / "flat.yaml"
        assert main(["init", str(target), *ALL]) == 0
        text = target.read_text(encoding="utf-8")
        tail = text[text.index("# constraints:") :]
        text = text.replace(
            tail, "\n".join(line.removeprefix("# ").replace("#   ", "  ") for line in tail.splitlines())
        )
        changed = text[text.index("{profile: macbook-m1") :].splitlines()[0]
        text = text.replace("  - macbook-m1\n", f"  - {changed}\n")
        target.write_text(text.replace("network: ethernet-1g", "network: {default: {rate: 50 Mbit/s, latency: 2 ms}}"))
        problem = load_problem(target)
        assert problem.constraints.deadline == 10.0
        assert problem.constraints.forbid == ["rtx-4090-2"]
        assert problem.devices[0].memory == 4 * 2**30
        for words in (["profiles", "schema", "problem"], ["profiles", "list", "models"]):
            assert main(words) == 0

    def test_yes_takes_defaults_for_either_family(self, tmp_path, capsys):
        for model, fields in (("llama-3.2-1b", {"prompt_tokens": 512}), ("ssd-1b", {"steps": 20})):
            target = tmp_path / f"{model}.yaml"
            assert main(["init", str(target), "--model", model, "--device", "rtx-4090", "--yes", "--json"]) == 0
            shown = json.loads(capsys.readouterr().out)
            assert shown.keys() == {"file", "plan", "next"}
            assert shown["plan"]["status"] == "optimal"
            workload = load_problem(target).workload
            assert {key: getattr(workload, key) for key in fields} == fields

    def test_paths_are_seen_from_the_file(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "own").mkdir()
        assert main(["profiles", "show", "rtx-4090"]) == 0
        (tmp_path / "my card.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
        words = ["--model", "llama-3.2-1b", "--device", "card=my card.yaml", "--yes"]
        assert main(["init", "own/flat.yaml", *words]) == 0
        assert load_problem(tmp_path / "own" / "flat.yaml").devices[0].name == "card"

    def test_force_replaces(self, tmp_path, capsys):
        target = tmp_path / "flat.yaml"
        target.write_text("precious", encoding="utf-8")
        assert main(["init", str(target), *ALL]) == 2
        assert "--force" in capsys.readouterr().err
        assert target.read_text() == "precious"
        assert main(["init", str(target), *ALL, "--force"]) == 0
        assert load_problem(target).name == "flat"

    def test_no_plan_is_exit_1_and_the_file_is_there_to_be_changed(self, tmp_path, capsys):
        target = tmp_path / "tight.yaml"
        words = ["--model", "llama-3.1-70b", "--device", "rtx-4090", "--yes"]
        assert main(["init", str(target), *words]) == 1
        printed = capsys.readouterr()
        assert "memory" in printed.err
        assert load_problem(target).model.name == "llama-3.1-70b"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], ["--model", "--device", "--network", "--workload", "--objective", "no terminal"]),
        (["--yes"], ["--model", "--device", "edgeopt profiles list devices"]),
        (["--model", "lama-3.2-1b", "--device", "rtx-4090", "--yes"], ["--model", "llama-3.2-1b"]),
        (["--model", "llama-3.2-1b", "--device", "rtx-4091", "--yes"], ["--device", "rtx-4090"]),
        (["--model", "llama-3.2-1b", "--device", "a=rtx-4090", "--device", "a=l4", "--yes"], ["--device", "'a'"]),
        (["--model", "llama-3.2-1b", "--device", "=rtx-4090", "--yes"], ["--device", "NAME=LIBRARY"]),
        ([*ALL, "--network", "wifi"], ["wifi"]),
        ([*ALL, "--workload", "many"], ["--workload", "many", "FIELD=NUMBER"]),
        ([*ALL, "--workload", "steps=4"], ["workload", "steps"]),
        ([*ALL, "--objective", "speed"], ["objective", "speed"]),
        ([*ALL, "--time-limit", "4"], ["--time-limit"]),
    ],
)
def test_refused_and_nothing_written(tmp_path, capsys, words, named):
    target = tmp_path / "flat.yaml"
    assert main(["init", str(target), *words]) == 2
    printed = capsys.readouterr()
    assert [word for word in named if word not in printed.err] == [], printed.err
    assert ": edgeopt" in printed.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
    assert main(["init", str(target), *words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_an_answer_that_shows_only_when_solving_leaves_no_file(tmp_path, capsys, monkeypatch):
    from edgeopt import planner
    from edgeopt.errors import Finding, InputError

    def solve(problem, **_):
        raise InputError(Finding("devices.0", "has no bfloat16", "take another"))

    monkeypatch.setattr(planner, "solve", solve)
    target = tmp_path / "p.yaml"
    words = ["init", str(target), "--model", "llama-3.2-3b", "--device", "raspberry-pi-5-8gb", "--yes"]
    assert main(words) == 2
    assert "has no bfloat16" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize("name", ["flat.txt", "no/flat.yaml", "flat"])
def test_files_that_cannot_be_written_are_refused_first(tmp_path, capsys, name):
    assert main(["init", str(tmp_path / name)]) == 2
    assert name.split("/")[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class TestTerminal:
    def test_it_asks_completes_and_solves(self, tmp_path):
        code, seen = converse(
            ["init"],
            [
                ("Which model?", "llama-3.2-3"),
                ("llama-3.2-3b", "\t\r"),
                ("Which device sends the request?", "snapdragon-8-el"),
                ("phone-snapdragon-8-elite", "\t\r"),
                ("Which further device?", "rtx-4091\r"),
                ("did you mean 'rtx-4090'", "\x7f0\r"),
                ("Which further device?", "\r"),
                ("How are they connected? (Enter: wifi-5-home)", "\r"),
                ("How many tokens has the prompt?", "0\r"),
                ("a whole number above 0", "\x7f64\r"),
                ("How many tokens are generated?", "\r"),
                ("What matters most?", "\r"),
                ("next: edgeopt explain problem.yaml", ""),
            ],
            tmp_path,
        )
        assert code == 0, seen
        problem = load_problem(tmp_path / "problem.yaml")
        assert [one.name for one in problem.devices] == ["phone-snapdragon-8-elite", "rtx-4090"]
        assert problem.model.name == "llama-3.2-3b"
        assert problem.network.name == "wifi-5-home"
        assert (problem.workload.prompt_tokens, problem.workload.new_tokens) == (64, 128)
        assert "optimal: objective" in seen

    def test_flags_are_not_asked_for_again(self, tmp_path):
        words = ["init", "images.yaml", "--model", "ssd-1b", "--device", "rtx-4090", "--network", "ethernet-1g"]
        answers = [("How many denoising steps?", "8\r"), ("How many images?", "\r"), ("What matters most?", "\r")]
        code, seen = converse(words, answers, tmp_path)
        assert code == 0, seen
        assert "Which" not in seen
        assert load_problem(tmp_path / "images.yaml").workload.steps == 8

    def test_ctrl_c_writes_nothing(self, tmp_path):
        code, seen = converse(["init"], [("Which model?", "\x03")], tmp_path)
        assert code == 130, seen
        assert "interrupted" in seen
        assert list(tmp_path.iterdir()) == []
