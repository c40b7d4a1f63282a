"""The campaign's own arithmetic: what is drawn keeps its limits, what was found survives, what was not is said."""

from __future__ import annotations

import random
import subprocess

import pytest

pytest.importorskip("psutil")

from edgeopt import planner
from edgeopt.executor.netlab import missing
from edgeopt.profiler.device import slowed
from tests.benchmarks.campaign import faults, predict
from tests.benchmarks.campaign.draws import SPEEDS
from tests.benchmarks.campaign.faults import CASES
from tests.benchmarks.campaign.ledger import Ledger
from tests.benchmarks.campaign.page import page
from tests.benchmarks.campaign.trial import Trial, clear
from tests.edgeopt.factories import device

PARTS = ("predict", "overhead", "calibrate", "correct", "faults")


def test_drawn_plans_are_different_and_keep_every_limit():
    devices = [slowed(device("whole", gflops=50.0), speed, f"speed-{round(100 * speed)}") for speed in SPEEDS]
    rows = predict.plans_of(devices, 1, clusters=4, each=3, steps=5)
    assert [key for key, _, _ in rows[:4]] == ["c0.0", "c1.0", "c2.0", "c3.0"], "clusters take turns, the best first"
    assert len(rows) == 12
    for name in {name for _, name, _ in rows}:
        own = [plan for _, cluster, plan in rows if cluster == name]
        assert len({(tuple(p.cuts), tuple(p.devices), tuple(p.variants)) for p in own}) == len(own)
        assert min(own, key=lambda plan: plan.latency_s).backend != "drawn", "none that is drawn beats the best"
        assert all(len({stage.device for stage in plan.stages}) > 1 for plan in own), "nothing fits on one device"
        for plan in own:
            assert planner.verify(plan, resolve_time_limit_s=None) == []
            assert all(1e-3 <= link.latency <= 50e-3 for link in plan.problem.network.links)
            assert all(10e6 / 8 <= link.rate <= 1000e6 / 8 for link in plan.problem.network.links)
    again = predict.plans_of(devices, 1, clusters=4, each=3, steps=5)
    assert [plan.cuts for *_, plan in again] == [plan.cuts for *_, plan in rows]


def test_findings_survive_an_interruption(tmp_path):
    ledger = Ledger(tmp_path, {"seed": 1}, resume=False)
    ledger.put("part", "a", {"value": 1})
    with ledger.path.open("a") as stream:
        stream.write('{"part": "part", "key": "b", "rec')  # cut off in the middle
    again = Ledger(tmp_path, {"seed": 1}, resume=True)
    assert again.of("part") == {"a": {"value": 1}}
    again.put("part", "b", {"value": 2})
    assert set(Ledger(tmp_path, {"seed": 1}, resume=True).of("part")) == {"a", "b"}
    with pytest.raises(SystemExit, match="--resume"):
        Ledger(tmp_path, {"seed": 2}, resume=True)
    assert Ledger(tmp_path, {"seed": 2}, resume=False).of("part") == {}


def test_figures_of_predictions(tmp_path):
    ledger = Ledger(tmp_path, {}, resume=False)
    terms = {f"{name}_error_s": 0.0 for name in ("compute", "transfer", "overhead")}
    drawn = [("c0.0", True, 1.0, 1.1), ("c0.1", False, 2.0, 1.0), ("c1.0", True, 3.0, 3.0), ("c1.1", False, 4.0, 5.0)]
    for key, chosen, predicted, measured in drawn:
        ledger.put(
            "predict", key,
            {
                "cluster": key[:2], "family": "pipeline", "chosen": chosen, "predicted_s": predicted, "stages": 2,
                "measured_s": measured, "error": predicted / measured - 1, "shortest_stage_s": 0.03, "devices": 2,
                "overhead_ratio": 1.01, "turns": 2, "samples_s": [measured - 0.06, measured, measured + 0.06], **terms,
            },
        )  # fmt: skip
    facts = predict.summary(ledger)
    assert facts is not None
    assert facts["chosen_above_best_worst"] == pytest.approx(0.1), "1.1 s where 1.0 s was possible"
    assert facts["kendall_within"] == 0.0, "one cluster in the right order, one not"
    assert facts["kendall_all"] == pytest.approx(2 / 3), "five of six pairs"
    assert (facts["pairs_apart"], facts["pairs"]) == (5, 6), "1.0 and 1.1 s overlap"
    assert facts["kendall_apart"] == 1.0
    assert facts["error_worst"] == pytest.approx(1.0)
    found = dict.fromkeys(PARTS) | {"predict": facts}
    assert "| **c0.0** |" in page(ledger, found, {"predict": 1.0}, quick=False)


def test_a_part_that_was_not_run_is_said_to_be(tmp_path):
    text = page(Ledger(tmp_path, {}, resume=False), dict.fromkeys(PARTS), {}, quick=True)
    assert text.count("not measured") == len(PARTS)
    assert "shake-down" in text
    assert all(case.ends for case in CASES.values())


def finding(name: str, **fields: object) -> dict[str, object]:
    ends = {"end": "finished", "expected": "finished", "as_configured": True, "left": [], "recoveries": 1}
    return {"case": name, "request_s": 2.0, **ends, **fields}


def test_a_run_that_the_campaign_fails_at_holds_up_no_other(tmp_path, monkeypatch):
    ledger, said = Ledger(tmp_path, {}, resume=False), []

    def one(name, number, seed, folder):
        if (name, number) == ("disk full at report", 0):
            raise FileExistsError("a disk of an earlier campaign")
        return finding(name)

    monkeypatch.setattr(faults, "_one", one)
    with pytest.raises(SystemExit, match="1 of 16 runs, first: FileExistsError"):
        faults.run(ledger, True, 1, said.append)
    assert len(said) == 16
    assert len(ledger.of("faults")) == 15, "all others are findings"
    monkeypatch.setattr(faults, "_one", lambda name, *rest: finding(name))
    faults.run(ledger, True, 1, said.append)
    assert len(said) == 17, "and only the missing one is done again"
    facts = faults.summary(ledger)
    assert facts is not None
    assert facts["cases"]["disk full at report"] == {
        "runs": 2, "as_configured": 2, "left_something": 0, "recovered": 2, "request_s": 2.0, "ends": {"finished": 2},
    }  # fmt: skip


@pytest.mark.root
@pytest.mark.skipif(missing() is not None, reason="mounting a disk needs root on Linux")
def test_the_disk_of_a_campaign_that_was_killed_is_taken_away(tmp_path):
    disk = tmp_path / "run" / "copy-0" / "out"
    disk.mkdir(parents=True)
    for _ in range(2):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)], check=True)
    clear(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    clear(tmp_path / "run")


def test_runs_of_a_case_take_turns():
    turns = [CASES["kill -9, rank 1"].trial(number, random.Random(number)) for number in range(faults.REPEATS)]
    drawn = {(trial.options, trial.fault["moment"]) for trial in turns}
    assert len(drawn) == 12, "three policies, two launchers, at the start and in the request"
    assert all(0 <= trial.fault["after_s"] < 1.8 for trial in turns)


@pytest.mark.parametrize(
    ("code", "errors", "end"),
    [
        (1, "error: stage 1 on device 'server': its process was killed by SIGKILL", "error"),
        (1, "error: stage 0 on device 'phone': its process was killed by SIGKILL", "error that blames phone"),
        (1, "error: device 'server': it is gone", "exit 1"),
        (2, "error: [Errno 28] not written, No space left on device: 'out/report.json'", "full"),
        (130, "starting 2 workers\ninterrupted\n", "interrupted"),
        (130, "Traceback (most recent call last)\ninterrupted\n", "traceback and exit 130"),
        (0, "", "exit 0"),
    ],
)
def test_ends_are_told_apart(code, errors, end):
    trial = Trial({"kind": "kill"}, ("--on-fault", "fail"), 1e6, loses="server")
    assert trial._judge(code, errors, None) == end
