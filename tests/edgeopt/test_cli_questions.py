"""compare, explain and diff as a user meets them: what they print, their documents, how they refuse."""

from __future__ import annotations

import json
import sys

import pytest

from edgeopt import planner
from edgeopt.cli import main
from edgeopt.profiles import load_problem
from tests.edgeopt.cli_cases import PROBLEM
from tests.edgeopt.factories import device, image_problem, text_problem
from tests.edgeopt.test_cli_execute import a_report

ALTERNATIVE_KEYS = {
    "strategy", "outcome", "objective", "bound", "gap", "latency_s", "throughput_per_s", "energy_j", "quality",
    "traffic_bytes", "memory_bytes", "devices", "runtime_s", "remark",
}  # fmt: skip


def document(capsys):
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


class TestCompare:
    def test_json_has_the_agreed_shape(self, problem, capsys):
        assert main(["compare", str(problem), "--json"]) == 0
        shown = document(capsys)
        assert shown.keys() == {
            "problem", "model", "objective", "best", "strategies", "baseline", "unfit", "frontier",
        }  # fmt: skip
        assert all(one.keys() == ALTERNATIVE_KEYS for one in [*shown["strategies"], shown["baseline"]])
        assert shown["best"] == shown["strategies"][0]["strategy"] == "pipeline"
        assert shown["strategies"][0]["outcome"] == "optimal"
        assert shown["baseline"]["outcome"] == "infeasible"
        others = {"hierarchical", "multi_stage", "patch", "split_diffusion"}
        assert others <= {one["strategy"] for one in shown["unfit"]}
        assert shown["frontier"] is None
        assert main(["solve", str(problem), "--json"]) == 0
        assert document(capsys)["objective"] == shown["strategies"][0]["objective"]

    def test_the_frontier_is_in_the_document_and_on_the_screen(self, capsys):
        words = ["compare", "demo-diffusion", "--pareto", "quality,latency", "--points", "3"]
        assert main([*words, "--json"]) == 0
        line = document(capsys)["frontier"]
        assert line["axes"] == [{"metric": "quality", "unit": ""}, {"metric": "latency", "unit": "s"}]
        assert line["complete"] is False
        assert len(line["points"]) == 3
        assert [point["quality"] for point in line["points"]] == sorted(point["quality"] for point in line["points"])
        assert [point["latency"] for point in line["points"]] == sorted(
            (point["latency"] for point in line["points"]), reverse=True
        )
        assert main(words) == 0
        printed = capsys.readouterr().out
        assert "latency (s)" in printed
        assert "there may be more" in printed
        assert "no single device can run all of it" in printed

    def test_the_frontier_as_a_picture(self, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        target = tmp_path / "line.svg"
        words = ["compare", "demo-diffusion", "--pareto", "latency,quality", "--points", "2", "--picture", str(target)]
        assert main(words) == 0
        assert target.read_bytes().startswith(b"<?xml")
        assert str(target) in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "argument", "value"),
        [
            (["--backend", "pulp"], "backend", "pulp"),
            (["--time-limit", "1500 ms"], "time_limit_s", 1.5),
            (["--gap", "0.25"], "gap", 0.25),
            ([], "backend", "exact"),
            ([], "time_limit_s", None),
        ],
    )
    def test_every_flag_arrives(self, problem, monkeypatch, words, argument, value):
        from edgeopt.questions import compare

        seen = {}
        real = compare.compare
        monkeypatch.setattr(compare, "compare", lambda problem, **options: seen.update(options) or real(problem))
        assert main(["compare", str(problem), *words]) == 0
        assert seen[argument] == value

    def test_points_and_time_arrive_at_the_frontier(self, monkeypatch):
        from edgeopt.questions import frontier

        seen = []
        real = frontier.frontier
        monkeypatch.setattr(frontier, "frontier", lambda *words: seen.append(words[1:]) or real(words[0], words[1], 2))
        words = ["--pareto", "latency,quality", "--points", "7", "--time-limit", "9s"]
        assert main(["compare", "demo-diffusion", *words]) == 0
        assert seen == [(("latency", "quality"), 7, 9.0)]

    def test_no_plan_is_exit_1_and_names_the_limit(self, problem, capsys):
        problem.write_text(PROBLEM.replace("memory: 3 GB", "memory: 1 MB"), encoding="utf-8")
        assert main(["compare", str(problem)]) == 1
        assert "memory" in capsys.readouterr().err

    def test_the_time_limit_without_a_plan_is_exit_3(self, problem, monkeypatch, capsys):
        from edgeopt.errors import TimeLimitError

        def too_late(*_, **__):
            raise TimeLimitError("no plan within 1 s")

        monkeypatch.setattr(planner, "solve_with", too_late)
        assert main(["compare", str(problem), "--time-limit", "50 ms"]) == 3
        assert f"try: edgeopt compare {problem} --time-limit" in capsys.readouterr().err


class TestExplain:
    def test_json_has_the_agreed_shape(self, plan, capsys):
        assert main(["explain", str(plan), "--json"]) == 0
        shown = document(capsys)
        assert shown.keys() == {
            "problem", "strategy", "status", "objective", "bound", "latency_s", "terms", "busy", "energy", "limits",
            "missed", "why_not",
        }  # fmt: skip
        assert sum(term["seconds"] for term in shown["terms"]) == pytest.approx(shown["latency_s"])
        assert shown["why_not"] == shown["missed"] == []
        for limit in shown["limits"]:
            assert limit.keys() == {"limit", "change", "amount", "before", "after", "gain", "lifted", "proven"}
            assert limit["before"] - limit["after"] == pytest.approx(limit["gain"])

    def test_it_says_what_binds_in_words(self, plan, capsys):
        assert main(["explain", str(plan)]) == 0
        printed = capsys.readouterr().out
        assert "2 GB more on desktop: -" in printed
        assert "200 instead of 100 Mbit/s on links that are not listed: -" in printed
        assert "optimal: objective" in printed

    def test_a_problem_is_solved_first(self, problem, plan, capsys):
        assert main(["explain", str(plan), "--json"]) == 0
        of_plan = document(capsys)
        assert main(["explain", str(problem), "--json"]) == 0
        assert document(capsys) == of_plan

    def test_why_not_as_json(self, plan, capsys):
        words = ["--why-not", "block.* on laptop", "--why-not", "phone", "--why-not", "desktop"]
        assert main(["explain", str(plan), *words, "--json"]) == 0
        shown = document(capsys)
        assert shown["limits"] is None
        impossible, priced, granted = shown["why_not"]
        assert (impossible["possible"], impossible["price"], impossible["objective"]) == (False, None, None)
        assert "memory" in impossible["broken"]
        assert priced["possible"] is True
        assert priced["price"] > 0
        assert priced["price"] == pytest.approx(priced["objective"] - shown["objective"])
        assert "phone" in {stage["device"] for stage in priced["stages"]}
        assert granted["granted"] is True
        assert granted["price"] == 0

    def test_why_not_on_the_screen(self, plan, capsys):
        words = ["--why-not", "block.* on laptop", "--why-not", "phone", "--why-not", "desktop"]
        assert main(["explain", str(plan), *words]) == 0
        printed = capsys.readouterr().out
        assert "block.* on laptop: impossible; memory_bytes: device 'laptop'" in printed
        assert "phone: +" in printed
        assert "desktop: the plan does so already" in printed

    def test_nothing_that_binds_is_said(self, tmp_path, capsys):
        from edgeopt.profiles import save_plan

        plan = planner.solve(text_problem(devices=[device("server", memory=9e12)]))
        save_plan(plan, tmp_path / "alone.yaml")
        assert main(["explain", str(tmp_path / "alone.yaml")]) == 0
        assert "no limit binds" in capsys.readouterr().out

    def test_throughput_names_who_is_busy_and_energy_who_draws(self, tmp_path, capsys):
        from edgeopt.profiles import save_plan

        devices = [device(name, memory=3e9, power={"busy": 5.0, "idle": 1.0}) for name in ("phone", "server")]
        save_plan(planner.solve(text_problem(devices=devices, objective="throughput")), tmp_path / "plan.yaml")
        assert main(["explain", str(tmp_path / "plan.yaml")]) == 0
        printed = capsys.readouterr().out
        assert "busy per request: " in printed
        assert "energy of server: busy" in printed

    def test_the_time_limit_arrives(self, plan, capsys):
        assert main(["explain", str(plan), "--time-limit", "0.001 ms"]) == 0
        assert "not looked at in the time: devices[" in capsys.readouterr().out


class TestDiff:
    @pytest.fixture
    def other(self, problem, tmp_path, capsys):
        path = tmp_path / "other.json"
        problem.write_text(PROBLEM.replace("rate: 100 Mbit/s", "rate: 10 Mbit/s"), encoding="utf-8")
        assert main(["solve", str(problem), "-o", str(path)]) == 0
        capsys.readouterr()
        return path

    def test_json_has_the_agreed_shape(self, plan, other, capsys):
        assert main(["diff", str(plan), str(other), "--json"]) == 0
        shown = document(capsys)
        assert shown.keys() == {"kind", "figures", "moves", "problem", "notes"}
        assert shown["kind"] == "plan"
        assert [one["field"] for one in shown["problem"]] == ["network.default.rate"]
        latency = next(one for one in shown["figures"] if one["name"] == "latency_s")
        assert latency["change"] == pytest.approx(latency["after"] - latency["before"])
        assert latency["change"] > 0

    def test_on_the_screen(self, plan, other, capsys):
        assert main(["diff", str(plan), str(other)]) == 0
        printed = capsys.readouterr().out
        assert "latency_s" in printed
        assert "network.default.rate: " in printed
        assert main(["diff", str(plan), str(plan)]) == 0
        assert capsys.readouterr().out == "no difference\n"

    def test_of_reports(self, tmp_path, capsys):
        solved = planner.solve(text_problem())
        report = a_report(solved)
        slower = report.latency_s.model_copy(update={"median": 2 * report.latency_s.median})
        paths = [tmp_path / "a.json", tmp_path / "b.json"]
        for path, one in zip(paths, (report, report.model_copy(update={"latency_s": slower})), strict=True):
            path.write_text(one.model_dump_json(by_alias=True), encoding="utf-8")
        assert main(["diff", *map(str, paths), "--json"]) == 0
        shown = document(capsys)
        assert shown["kind"] == "report"
        changed = [one for one in shown["figures"] if one["change"]]
        assert [one["name"] for one in changed] == ["latency_s"]
        assert changed[0]["change"] == pytest.approx(report.latency_s.median)
        assert changed[0]["noise"] == pytest.approx(report.latency_s.spread)
        assert main(["diff", *map(str, paths)]) == 0
        assert "+100 %" in capsys.readouterr().out

    def test_a_plan_and_a_report_are_refused(self, plan, tmp_path, capsys):
        path = tmp_path / "report.json"
        path.write_text(a_report(planner.solve(text_problem())).model_dump_json(by_alias=True), encoding="utf-8")
        assert main(["diff", str(plan), str(path)]) == 2
        assert "give two plans or two reports" in capsys.readouterr().err


LINE = ["demo-diffusion", "--pareto", "latency,quality"]


@pytest.mark.parametrize(
    ("words", "named", "next_command"),
    [
        (["compare", "no-such-problem"], "no-such-problem", "edgeopt profiles list"),
        (["compare", "{broken}"], "memroy", "edgeopt profiles validate {broken}"),
        (["compare", "{problem}", "--pareto", "latency"], "two different metrics", "edgeopt compare --help"),
        (["compare", "{problem}", "--pareto", "latency,quality"], "carries no quality", "edgeopt profiles validate"),
        (["compare", "{problem}", "--picture", "x.svg"], "--pareto", "edgeopt compare --help"),
        (["compare", *LINE, "--picture", "x.gif"], "x.gif", "edgeopt"),
        (["compare", *LINE, "--picture", "no/x.svg"], "no", "edgeopt compare --help"),
        (["compare", "{problem}", "--points", "1"], "--points", "edgeopt compare --help"),
        (["compare", "{problem}", "--time-limit", "9"], "--time-limit", "edgeopt compare --help"),
        (["compare", "{problem}", "--backend", "magic"], "magic", "edgeopt"),
        (["compare"], "problem", "edgeopt compare --help"),
        (["explain", "no-such-plan"], "no-such-plan", "edgeopt profiles list"),
        (["explain", "{broken}"], "memroy", "edgeopt profiles validate {broken}"),
        (["explain", "{plan}", "--why-not", "stage 7 on phone"], "there is no stage 7", "edgeopt explain --help"),
        (["explain", "{plan}", "--why-not", "stage 0 on fone"], "fone", "edgeopt explain --help"),
        (["explain", "{plan}", "--time-limit", "soon"], "--time-limit", "edgeopt explain --help"),
        (["diff", "{plan}"], "B", "edgeopt diff --help"),
        (["diff", "{plan}", "{problem}"], "this is no plan", "edgeopt solve PROBLEM -o"),
        (["diff", "{plan}", "nowhere.yaml"], "nowhere.yaml", "edgeopt"),
    ],
)
def test_bad_input_is_exit_2_with_the_command_to_try(problem, plan, tmp_path, capsys, words, named, next_command):
    broken = tmp_path / "broken.yaml"
    broken.write_text(PROBLEM.replace("memory: 2 GB", "memroy: 2 GB"), encoding="utf-8")
    paths = {"problem": problem, "plan": plan, "broken": broken}
    words = [word.format(**paths) for word in words]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert f"try: {next_command.format(**paths)}" in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert main([*words, "--json"]) == 2
    assert document(capsys)["error"]["exit_code"] == 2


def test_these_verbs_load_neither_torch_nor_matplotlib(problem, plan, capsys):
    import subprocess

    verbs = [["compare", str(problem)], ["explain", str(plan)], ["diff", str(plan), str(plan)]]
    program = (
        "import sys; from edgeopt.cli import main\n"
        f"for words in {verbs!r}:\n"
        "    assert main([*words, '--json']) == 0\n"
        "print(sorted({'torch', 'matplotlib', 'pulp', 'ortools', 'cvxpy'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_auto_in_a_file_is_compared_and_said(tmp_path, capsys):
    assert main(["solve", "demo-llm", "--strategy", "auto", "--json"]) == 0
    shown = document(capsys)
    assert shown["strategy"] == "pipeline"
    assert shown["alternatives"] == []
    assert load_problem("demo-llm").strategy == "pipeline"
    assert planner.solve(image_problem(strategy="auto")).problem.strategy == "auto"
