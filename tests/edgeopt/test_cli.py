"""The command line as a user meets it: what it prints, what it writes, which exit code it ends with."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time

import pytest

from edgeopt import planner
from edgeopt.cli import main
from edgeopt.profiles import load_plan
from tests.edgeopt.cli_cases import PROBLEM

SOLVE_KEYS = {
    "status", "objective", "bound", "gap", "runtime_s", "strategy", "backend", "latency_s", "throughput_per_s",
    "energy_j", "quality", "stages", "bandwidth", "alternatives",
}  # fmt: skip
STAGE_KEYS = {"device", "variant", "start", "stop", "compute_s", "transfer_s", "transfer_bytes", "memory_bytes"}


class TestSolve:
    def test_json_has_the_agreed_shape(self, problem, capsys):
        assert main(["solve", str(problem), "--json"]) == 0
        printed = capsys.readouterr()
        document = json.loads(printed.out)
        assert document.keys() >= SOLVE_KEYS
        assert all(stage.keys() == STAGE_KEYS for stage in document["stages"])
        assert [stage["start"] for stage in document["stages"][1:]] == [
            stage["stop"] for stage in document["stages"][:-1]
        ]
        assert document["status"] == "optimal"
        assert document["gap"] == 0
        assert document["ttft_s"] > 0
        assert printed.err == ""
        for link in document["bandwidth"]:
            assert link.keys() == {"link", "share", "rate_bytes_per_s"}
            assert link["rate_bytes_per_s"] == pytest.approx(12.5e6)

    def test_prints_stages_figures_and_proof(self, problem, capsys):
        assert main(["solve", str(problem)]) == 0
        printed = capsys.readouterr()
        assert "desktop" in printed.out
        assert "time to first token" in printed.out
        proof = next(line for line in printed.out.splitlines() if line.startswith("optimal"))
        assert "objective" in proof
        assert "bound" in proof
        assert "gap 0 %" in proof
        assert printed.err == ""

    @pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
    def test_output_is_a_plan(self, problem, tmp_path, name):
        target = tmp_path / name
        assert main(["solve", str(problem), "-o", str(target)]) == 0
        assert load_plan(target).status == "optimal"
        if name.endswith(".json"):
            json.loads(target.read_text())

    @pytest.mark.parametrize(
        ("words", "argument", "value"),
        [
            (["--strategy", "pipeline"], "strategy", "pipeline"),
            (["--backend", "pulp"], "backend", "pulp"),
            (["--time-limit", "90s"], "time_limit_s", 90.0),
            (["--time-limit", "1500 ms"], "time_limit_s", 1.5),
            (["--gap", "0.25"], "gap", 0.25),
            ([], "time_limit_s", None),
            ([], "backend", "exact"),
            ([], "gap", 0.0),
            ([], "strategy", None),
        ],
    )
    def test_every_flag_reaches_the_planner(self, problem, monkeypatch, words, argument, value):
        seen = {}
        real = planner.solve

        def record(problem, **options):
            seen.update(options)
            return real(problem)

        monkeypatch.setattr(planner, "solve", record)
        assert main(["solve", str(problem), *words]) == 0
        assert seen[argument] == value

    def test_backend_shows_in_the_answer(self, problem, capsys):
        objectives = {}
        for backend in ("exact", "pulp"):
            assert main(["solve", str(problem), "--backend", backend, "--json"]) == 0
            document = json.loads(capsys.readouterr().out)
            assert document["backend"] == backend
            objectives[backend] = document["objective"]
        assert objectives["exact"] == pytest.approx(objectives["pulp"], rel=1e-6)

    def test_a_missing_folder_is_refused_before_solving(self, problem, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(planner, "solve", lambda *_, **__: pytest.fail("solved"))
        assert main(["solve", str(problem), "-o", str(tmp_path / "nowhere" / "plan.yaml")]) == 2
        assert "nowhere" in capsys.readouterr().err

    def test_an_error_leaves_the_old_plan_alone(self, problem, tmp_path):
        target = tmp_path / "plan.yaml"
        target.write_text("precious", encoding="utf-8")
        problem.write_text(PROBLEM.replace("memory: 3 GB", "memory: 1 MB"), encoding="utf-8")
        assert main(["solve", str(problem), "-o", str(target)]) == 1
        assert target.read_text() == "precious"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yaml", "problem.yaml"]

    def test_no_plan_is_exit_1_and_names_the_limit(self, problem, capsys):
        problem.write_text(PROBLEM.replace("memory: 3 GB", "memory: 1 MB"), encoding="utf-8")
        assert main(["solve", str(problem)]) == 1
        assert "memory" in capsys.readouterr().err

    def test_the_time_limit_without_a_plan_is_exit_3(self, problem, monkeypatch, capsys):
        from edgeopt.errors import TimeLimitError

        def too_late(*_, **__):
            raise TimeLimitError("no plan within 1 s")

        monkeypatch.setattr(planner, "solve", too_late)
        assert main(["solve", str(problem), "--time-limit", "1s"]) == 3
        assert f"try: edgeopt solve {problem} --time-limit" in capsys.readouterr().err


DUPLICATE = PROBLEM.replace("name: laptop", "name: phone")
NO_DEVICES = PROBLEM[: PROBLEM.index("devices:")] + "devices: []\n" + PROBLEM[PROBLEM.index("network:") :]
NO_LAYERS = PROBLEM[: PROBLEM.index("  layers:")] + "  layers: []\n" + PROBLEM[PROBLEM.index("strategy:") :]


class TestBadInput:
    """Each ends with exit code 2, names the field and the mend, and writes nothing."""

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            pytest.param(PROBLEM.replace("    memory: 2 GB\n", ""), "memory", id="missing field"),
            pytest.param(PROBLEM.replace("memory: 2 GB", "memory: 2 Mbit/s"), "memory", id="wrong unit"),
            pytest.param(PROBLEM.replace("memory: 2 GB", "memory: 2"), "memory", id="no unit"),
            pytest.param(PROBLEM.replace("memory: 2 GB", "memory: -2 GB"), "memory", id="negative"),
            pytest.param(PROBLEM.replace("memory: 2 GB", "memory: .nan"), "memory", id="not a number"),
            pytest.param(PROBLEM.replace("memory: 2 GB", "memroy: 2 GB"), "memory", id="unknown key"),
            pytest.param(PROBLEM + "constraints: {source: tablet}\n", "source", id="unknown device"),
            pytest.param(DUPLICATE, "phone", id="duplicate name"),
            pytest.param(PROBLEM.replace("rate: 100 Mbit/s", "rate: 0 Mbit/s"), "rate", id="zero bandwidth"),
            pytest.param(NO_DEVICES, "devices", id="no devices"),
            pytest.param(NO_LAYERS, "layers", id="no layers"),
            pytest.param("- a\n- b\n", "mapping", id="not a mapping"),
            pytest.param("[" * 1_000_000, "nested", id="brackets"),
            pytest.param(PROBLEM.replace("strategy: pipeline", "strategy: pipelin"), "strategy", id="unknown strategy"),
        ],
    )
    def test_of_files(self, problem, tmp_path, capsys, text, named):
        problem.write_text(text, encoding="utf-8")
        target = tmp_path / "plan.yaml"
        assert main(["solve", str(problem), "-o", str(target)]) == 2
        printed = capsys.readouterr()
        assert named in printed.err
        assert "try: edgeopt" in printed.err
        assert "Traceback" not in printed.err
        assert printed.out == ""
        assert [path.name for path in tmp_path.iterdir()] == ["problem.yaml"]

    @pytest.mark.parametrize(
        ("words", "named"),
        [
            (["../secrets"], "../secrets"),
            (["no-such-problem"], "no-such-problem"),
            (["{problem}", "--backend", "magic"], "magic"),
            (["{problem}", "--strategy", "magic"], "magic"),
            (["{problem}", "--time-limit", "10"], "--time-limit"),
            (["{problem}", "--time-limit", "10 MB"], "--time-limit"),
            (["{problem}", "--time-limit", "-3s"], "--time-limit"),
            (["{problem}", "--gap", "much"], "--gap"),
            (["{problem}", "--gap", "-1"], "gap"),
            (["{problem}", "--gap", "nan"], "gap"),
            (["{problem}", "--colour"], "--colour"),
            ([], "problem"),
        ],
    )
    def test_of_options(self, problem, tmp_path, capsys, words, named):
        target = tmp_path / "plan.yaml"
        words = [word.format(problem=problem) for word in words]
        assert main(["solve", *words, "-o", str(target)]) == 2
        printed = capsys.readouterr()
        assert named in printed.err
        assert "try: edgeopt" in printed.err
        assert "Traceback" not in printed.err
        assert not target.exists()

    def test_as_json_is_one_document_with_every_finding(self, problem, capsys):
        text = PROBLEM.replace("memory: 2 GB", "memory: -2 GB").replace("rate: 100 Mbit/s", "rate: fast")
        problem.write_text(text, encoding="utf-8")
        assert main(["solve", str(problem), "--json"]) == 2
        printed = capsys.readouterr()
        error = json.loads(printed.out)["error"]
        assert error["exit_code"] == 2
        assert error["next"] == f"edgeopt profiles validate {problem}"
        assert len(error["findings"]) == 2
        for finding, word in zip(error["findings"], ("-2 GB", "fast"), strict=True):
            assert word in finding["message"]
            assert finding["mend"]
            assert word in text.splitlines()[finding["line"] - 1]
        assert printed.err == ""

    def test_of_usage_as_json(self, capsys):
        assert main(["solve", "--json", "--colour"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["next"] == "edgeopt solve --help"

    def test_debug_shows_the_traceback(self, capsys):
        assert main(["solve", "no-such-problem", "--debug"]) == 2
        assert "Traceback" in capsys.readouterr().err

    def test_a_defect_is_said_to_be_one(self, problem, monkeypatch, capsys):
        def broken(*_, **__):
            raise KeyError("wheels")

        monkeypatch.setattr(planner, "solve", broken)
        assert main(["solve", str(problem)]) == 1
        printed = capsys.readouterr()
        assert "internal error" in printed.err
        assert "--debug" in printed.err
        assert "Traceback" not in printed.err


class TestVerify:
    def test_agrees_with_a_fresh_plan(self, plan, capsys):
        assert main(["verify", str(plan)]) == 0
        assert "verified" in capsys.readouterr().out

    def test_json(self, plan, capsys):
        assert main(["verify", str(plan), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"plan": str(plan), "verified": True, "mismatches": []}

    @pytest.mark.parametrize("field", ["latency_s", "bound", "objective"])
    def test_a_figure_that_was_touched_is_exit_1(self, plan, tmp_path, capsys, field):
        touched = tmp_path / "touched.json"
        content = load_plan(plan).model_dump(mode="json", by_alias=True)
        content[field] *= 1.5
        touched.write_text(json.dumps(content), encoding="utf-8")
        assert main(["verify", str(touched)]) == 1
        assert field in capsys.readouterr().err
        assert main(["verify", str(touched), "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert document["verified"] is False
        assert any(field in mismatch for mismatch in document["mismatches"])

    @pytest.mark.parametrize("text", [None, "format: edgeopt-plan/1\n", "{", PROBLEM])
    def test_what_is_no_plan_is_exit_2(self, tmp_path, capsys, text):
        path = tmp_path / "other.yaml"
        if text is not None:
            path.write_text(text, encoding="utf-8")
        assert main(["verify", str(path)]) == 2
        printed = capsys.readouterr()
        assert "other.yaml" in printed.err
        assert "try: edgeopt" in printed.err


def test_version(capsys):
    import edgeopt

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"edgeopt {edgeopt.__version__}\n"


def test_without_a_verb_the_help_is_printed(capsys):
    assert main([]) == 2
    printed = capsys.readouterr()
    assert "solve" in printed.out + printed.err


def test_a_closed_pipe_is_no_error(problem):
    command = [sys.executable, "-m", "edgeopt", "solve", str(problem)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def _least_seconds(words, tries=7):
    """Return least wall and CPU seconds of a few runs: other work on the machine makes a run slow, never fast."""
    wall_s, cpu_s = [], []
    for _ in range(tries):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "edgeopt", *words], capture_output=True, text=True, timeout=60)
        wall_s.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    return min(wall_s), min(cpu_s)


def _busy():
    """Whether more runs on this machine than it has cores: wall time then says nothing about the program."""
    return os.getloadavg()[0] > 0.75 * os.cpu_count()


@pytest.mark.parametrize(("words", "limit_s"), [(["--help"], 0.4), (["solve", "{problem}", "--json"], 1.0)])
def test_answers_within(problem, words, limit_s):
    wall_s, cpu_s = _least_seconds([word.format(problem=problem) for word in words])
    assert cpu_s < limit_s
    assert wall_s < limit_s or _busy()
