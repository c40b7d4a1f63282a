"""What the story compares is what it says: who computes what, at which size images are compared, how ratios cross."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

import numpy as np
import torch

from tests.benchmarks.diffusion import pictures, ratio, story
from tests.benchmarks.diffusion.bench import Bench
from tests.benchmarks.diffusion.curve import tight_problem
from tests.benchmarks.diffusion.methods import METHODS, Methods, at_speed, averaged

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    return Methods(Bench(True, tmp_path_factory.mktemp("story") / "samples.jsonl"))


def test_split_and_patch_use_both_fast_boards_and_one_denoiser(methods):
    problem = tight_problem(methods.bench, 1000)
    for name in ("split", "patch"):
        way = methods.best(name, problem)
        assert {stage.device for stage in way.plan.stages} == {"left", "right"}
        assert {stage.variant for stage in way.plan.stages} == {way.text}
    assert methods.best("split", problem).text == "large"
    alone = methods.best("single large", problem)
    assert [stage.device for stage in alone.plan.stages] == ["phone"]
    assert alone.predicted == methods.best("split", problem).predicted


def test_within_a_time_multi_stage_is_predicted_no_worse_than_one_denoiser(methods):
    problem = tight_problem(methods.bench, 1000)
    ways = {name: methods.best(name, problem, 0.15) for name in METHODS}
    assert ways["single large"] is None
    for way in ways.values():
        if way is not None:
            assert way.plan.latency_s <= 0.15 * (1 + 1e-9)
    for name in ("split", "patch", "single small"):
        assert ways["multi-stage"].predicted <= ways[name].predicted + 1e-9
    assert methods.best("multi-stage", problem, 1e-4) is None


def test_multi_stage_as_good_as_split_is_as_good(methods):
    problem = tight_problem(methods.bench, 1000)
    found = methods.as_good(problem, methods.bench.profile.base)
    assert found.predicted <= methods.bench.profile.base + 1e-9


def test_boards_at_a_speed_take_their_time_in_proportion(methods):
    problem = tight_problem(methods.bench, 1000)
    fast = problem.model_copy(update={"devices": [at_speed(device, 4) for device in problem.devices]})
    before, after = (methods.best("single large", each).plan for each in (problem, fast))
    assert sum(s.compute_s for s in after.stages) == pytest.approx(sum(s.compute_s for s in before.stages) / 4)


def test_images_of_a_cascade_are_compared_at_the_size_of_the_others(methods):
    image = torch.arange(256.0).reshape(1, 1, 16, 16)
    assert averaged(image)[0, 0, 0, 0] == image[0, 0, :2, :2].mean()
    small = torch.rand(2, 1, 8, 8)
    assert torch.equal(averaged(small), small)
    way = methods.best("hierarchical", tight_problem(methods.bench, 1000), 0.05)
    images = methods.images(way)
    assert images.shape[1:] == (1, 16, 16)
    assert methods.quality(way).frechet == methods.bench.reference.measure(averaged(images)).frechet


def test_the_rate_at_which_a_ratio_passes_one():
    points = [(rate, 200.0 / rate) for rate in (10.0, 50.0, 100.0, 500.0)]
    assert ratio.crossing(points) == pytest.approx(200.0)
    assert ratio.crossing(points[:3]) is None
    assert ratio.crossing([(10.0, 0.5), (50.0, 0.2)]) is None


def test_the_ratio_is_named_as_predicted_and_as_measured(methods):
    rows = []
    for rate, split_s in ((10, 2.0), (500, 0.1)):
        side = {"predicted_s": 0.2, "spread_s": 0.01, "equal": True, "stages": ["left large 0:25"]}
        split, multi = side | {"measured_s": split_s}, side | {"measured_s": 0.2}
        rows.append({"mbit": rate, "split": split, "multi": multi, "predicted": 1.0, "measured": split_s / 0.2})
    found = {
        "not_measured": "", "rows": rows, "boards": [{"name": "left", "quota": 0.5}],
        "crossover_predicted_mbit": 123.4,
        "crossover_measured_mbit": ratio.crossing([(row["mbit"], row["measured"]) for row in rows]),
    }  # fmt: skip
    text = "\n".join(ratio.section(found))
    assert "**123 Mbit/s**" in text
    assert f"**{found['crossover_measured_mbit']:.3g} Mbit/s**" in text
    assert "| 10 | 200.0 / 2000.0 ± 10.0 |" in text
    assert "bitwise" in text
    rows[1]["split"]["equal"] = False
    assert "DIFFER" in "\n".join(ratio.section(found))
    quick = ratio.run(methods.bench, lambda text: None)
    assert quick["not_measured"] == "a shake-down"
    assert "predicted only" in "\n".join(ratio.section(quick))
    assert quick["rows"][0]["predicted"] > quick["rows"][-1]["predicted"]


def test_verdicts_count_budgets_at_which_both_are_in_time():
    def row(multi, split):
        found = dict.fromkeys(METHODS)
        found |= {"budget": 1.0, "multi-stage": {"sampled": multi}, "split": split and {"sampled": split}}
        return found

    first, second = story.verdicts([row(2.0, 3.0), row(2.0, 2.01), row(2.0, 1.5), row(2.0, None)])[:2]
    assert first == "against split: better at 1, as good at 1, worse at 1; split is too slow at 1 of 4"
    assert second.endswith("patch is too slow at 4 of 4")


def test_figures_show_what_they_are_given(tmp_path):
    rows = [dict.fromkeys(METHODS) | {"budget": b, "multi-stage": {"sampled": 1.0 + b}} for b in (1.0, 2.0)]
    axes = pictures.draw_budget(rows, 0.8, "speed")
    line, floor = axes.get_lines()
    assert line.get_xydata().tolist() == [[1.0, 2.0], [2.0, 3.0]]
    assert floor.get_ydata()[0] == 0.8
    sides = {"predicted": {"latency_s": 2.0, "compute_s": 0.5}, "measured": None}
    bars = pictures.draw_shares([{"method": "split", **sides}]).patches
    assert [bar.get_width() for bar in bars] == [0.25, 0.75]
    images = [("real", np.zeros((3, 8, 8))), ("hierarchical", np.zeros((3, 16, 16)))]
    assert len(pictures.draw_digits(images).get_images()) == 6
    path = pictures.saved(pictures.digits_figure(images), tmp_path / "sub" / "digits.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    first = pictures.saved(pictures.quality_figure(rows, rows, 0.8), tmp_path / "quality.svg").read_bytes()
    assert pictures.saved(pictures.quality_figure(rows, rows, 0.8), tmp_path / "quality.svg").read_bytes() == first


def test_a_machine_that_is_busy_runs_nothing(tmp_path):
    assert Bench(False, tmp_path / "samples.jsonl", predict_only=True).not_run() == "asked for without running"
