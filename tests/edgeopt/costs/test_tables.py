"""Plans say what their seconds rest on: roofline, measured tables, or a line between two measured batches."""

from __future__ import annotations

import pytest

from edgeopt import planner
from edgeopt.costs.timings import between_batches
from edgeopt.profiles.device import Timing
from tests.edgeopt.factories import device, image_problem, text_problem

BETWEEN = "interpolated between measured batches"


def row(phase, batch, count=1, **fields):
    return Timing(
        phase=phase, batch=batch, dtype="float32", unit="ms", elements=[1.0] * count, repeats=3,
        source="made for a test", **fields,
    ).model_dump()  # fmt: skip


def text_tables(batches):
    one = {"model": "toy-lm", "count": 6}
    return [
        each
        for batch in batches
        for each in (
            row("prefill", batch, tokens=10, **one), row("decode", batch, context=10, **one),
            row("decode", batch, context=13, **one),
        )
    ]  # fmt: skip


def image_tables(batches):
    phases = [("text_encoder", None), ("step", "large"), ("step", "small"), ("decoder", None)]
    return [row(phase, batch, model="toy-diffusion", variant=variant) for batch in batches for phase, variant in phases]


@pytest.mark.parametrize(
    ("make", "tables", "load"),
    [
        (text_problem, text_tables, {"kind": "text", "prompt_tokens": 10, "new_tokens": 5, "batch": 3}),
        (image_problem, image_tables, {"kind": "image", "steps": 10, "images": 3}),
    ],
)
def test_a_plan_between_measured_batches_says_so(make, tables, load):
    def notes(batches):
        timed = device("timed", memory=9e9, timings=tables(batches))
        plan = planner.solve(make(devices=[timed, device("datasheet", gflops=0.1, memory=9e9)], workload=load))
        return [note for note in plan.notes if "compute" in note]

    from_tables, from_peaks, guessed = notes([1, 4])
    assert from_tables == "compute from measured tables: timed"
    assert from_peaks.endswith(": datasheet")
    assert BETWEEN in guessed
    assert guessed.endswith(": timed")
    assert not any(BETWEEN in note for note in notes([1, 3, 4]))
    assert not any(BETWEEN in note for note in notes([1, 2])), "beyond the tables the roofline serves"


def test_every_phase_needs_its_own_batch():
    timed = device("timed", timings=[row("step", 2, model="m", variant="a"), row("decoder", 1, model="m")])
    assert not between_batches(timed, "m", "float32", {"step": 2, "decoder": 1})
    assert between_batches(timed, "m", "float32", {"step": 1, "decoder": 1})
    assert between_batches(timed, "m", "float32", {"step": 2, "decoder": 2})
    assert not between_batches(timed, "other", "float32", {"step": 1})
    assert not between_batches(timed, "m", "float16", {"step": 1})
