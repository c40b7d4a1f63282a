"""A measured device profile: complete, sourced, and usable by the cost models."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.language import LanguageCosts
from edgeopt.errors import ExecutionError, InputError
from edgeopt.profiler import profile_device
from edgeopt.profiler.device import available_memory_bytes
from edgeopt.profiler.jobs import ElementAnswer, ElementJob, ElementSamples
from edgeopt.profiler.processes import run_jobs
from edgeopt.profiler.samples import undisturbed, wake_s
from edgeopt.profiler.timings import decode_knots, whole_plan
from edgeopt.profiles.device import Runtime
from edgeopt.profiles.problem import ImageWorkload, TextWorkload

psutil = pytest.importorskip("psutil")
pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = [pytest.mark.torch, pytest.mark.processes]

TEXT, IMAGE = TextWorkload(prompt_tokens=12, new_tokens=9), ImageWorkload(steps=5, images=2, guidance=3.0)


@pytest.fixture(autouse=True)
def _no_process_left():
    yield
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "edgeopt.profiler.worker" in child.cmdline()]


def test_profile_with_models(language_model, diffusion_model):
    said = []
    device = profile_device(
        "here", threads=1, models=[language_model, diffusion_model], workloads=[TEXT, IMAGE], repeats=2, processes=1,
        command="a test", progress=said.append,
    )  # fmt: skip
    assert said
    assert "a test" in device.source
    assert time.strftime("%Y-") in device.source
    assert 1e8 < device.compute["float32"] < 1e14
    assert 1e8 < device.memory_bandwidth < 1e13
    assert 1e-6 < device.launch_overhead < 1e-1
    assert 1e6 < device.memory <= available_memory_bytes() * 1.5
    assert device.efficiency.basis == "measured"
    assert device.runtime.threads == 1
    assert device.power is None
    assert device.messages.each > 0
    assert device.messages.per_mebibyte > 0
    assert "messages" in device.sources

    language = LanguageCosts(language_model, TEXT)
    (prefill_s, measured), (decode_s, all_measured) = language.prefill_s(device), language.decode_s(device)
    assert measured
    assert all_measured, "the table must cover every round of the request"
    assert decode_s.shape == (8, 5)
    assert language.wake_s(device) >= 0
    assert {timing.phase for timing in device.timings if timing.wake is not None} == {"decode"}
    assert (prefill_s > 0).all()
    assert (decode_s > 0).all()
    diffusion = DiffusionCosts(diffusion_model, IMAGE)
    table, measured = diffusion.compute_s(device)
    assert measured
    assert table[2, 0] > 1.5 * table[1, 0], "24 blocks take longer than one"
    assert sum(timing.phase == "decoder" for timing in device.timings) == 1


def test_elements_add_up_to_the_request(language_model):
    plan = whole_plan(language_model, TEXT, Runtime(threads=1), cuts=[2, 5], variants=[None, None], strategy="pipeline")
    job = ElementJob(threads=1, plans=[plan], warmup=1, repeats=3)
    started = time.perf_counter()
    (answer,) = run_jobs([job], ElementAnswer, 120)
    elapsed = time.perf_counter() - started
    (samples,) = answer.plans
    elements_s = np.array(samples.elements_s)
    assert elements_s.shape == (3, 9, 5)
    np.testing.assert_allclose(elements_s.sum(axis=(1, 2)), samples.requests_s)
    assert (elements_s > 0).all()
    assert sum(samples.requests_s) < elapsed
    rests = 3  # five elements in two stages: before 0, 2 and 4, in five rounds of three requests
    assert len(samples.wakes_s) == 3 * 5
    assert elapsed > 3 * 5 * rests * 0.1
    assert max(np.abs(samples.wakes_s)) < 0.1, "the rests themselves do not count"


def test_disturbed_requests_do_not_count():
    def process(seconds, waited):
        return ElementSamples(elements_s=[[[value]] for value in seconds], requests_s=seconds, waited_s=waited)

    calm = process([1.0, 1.1, 1.05], [0.0, 0.005, 0.0])
    busy = process([2.0, 3.0, 1.6], [0.9, 1.8, 0.5])
    samples, waited = undisturbed([calm, busy])
    assert samples.ravel().tolist() == [1.0, 1.1, 1.05]
    assert waited == pytest.approx(0.005 / 1.1)
    samples, waited = undisturbed([busy])
    assert samples.ravel().tolist() == [2.0, 1.6], "with nothing calm, the calmest two"
    assert waited == pytest.approx(0.45)


def test_requests_are_told_at_the_usual_speed_of_the_machine():
    def process(seconds, took):
        return ElementSamples(
            elements_s=[[[value]] for value in seconds], requests_s=seconds, waited_s=[0.0] * len(seconds),
            wakes_s=[0.2], yardsticks_s=took,
        )  # fmt: skip

    slow, fast = process([2.0, 2.0], [2e-3, 2e-3]), process([1.0], [1e-3])
    assert undisturbed([slow, fast])[0].ravel().tolist() == [2.0, 2.0, 2.0], "that of the median request"
    assert undisturbed([slow, fast], 1e-3)[0].ravel().tolist() == [1.0, 1.0, 1.0]
    assert wake_s([slow], 1e-3) == pytest.approx(0.1)
    bare = process([1.0], [])
    assert undisturbed([slow, bare])[0].ravel().tolist() == [2.0, 2.0, 1.0], "not known of all"


def test_wake_is_the_middle_process():
    def process(*wakes_s):
        return ElementSamples(elements_s=[[[1.0]]], requests_s=[1.0], waited_s=[0.0], wakes_s=list(wakes_s))

    assert wake_s([process(0.1, 0.2, 9.0), process(0.4), process(0.1)]) == pytest.approx(0.2)
    assert wake_s([process(-0.1)]) == 0.0, "noise"
    assert wake_s([process()]) is None, "one round waits for nobody"


def test_waiting_for_a_core_is_seen():
    from edgeopt.profiler.elements import _waited_s

    if not Path("/proc/self/schedstat").is_file():
        pytest.skip("the system does not count waiting")
    before = _waited_s()
    assert before >= 0
    assert _waited_s() >= before


def test_decode_knots_cover_the_request():
    assert decode_knots(10, 0) == []
    assert decode_knots(10, 1) == [(10, slice(0, 1))]
    assert decode_knots(10, 2) == [(10, slice(0, 1)), (11, slice(1, 2))]
    knots = decode_knots(10, 31)
    assert (knots[0][0], knots[-1][0], len(knots)) == (10, 40, 4)
    covered = [r for _, rounds in knots for r in range(31)[rounds]]
    assert covered == list(range(31))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"threads": 0}, "threads"),
        ({"threads": 10_000}, "threads"),
        ({"dtypes": ()}, "dtypes"),
        ({"repeats": 0}, "repeats"),
        ({"workloads": [TEXT, TEXT]}, "workloads"),
        ({"workloads": [IMAGE]}, "workloads"),
    ],
)
def test_requests_that_make_no_sense(language_model, change, field):
    with pytest.raises(InputError, match=field):
        profile_device("here", **({"models": [language_model]} | change))


def test_a_model_that_cannot_be_built_is_the_users_error(language_model):
    broken = language_model.model_copy(
        update={"architecture": language_model.architecture.model_copy(update={"class_name": "GPT2LMHeadModel"})}
    )
    plan = whole_plan(broken, TEXT, Runtime(threads=1), cuts=[5], variants=[None], strategy="pipeline")
    with pytest.raises(InputError, match="GPT2LMHeadModel"):
        run_jobs([ElementJob(threads=1, plans=[plan], warmup=0, repeats=1)], ElementAnswer, 60)


def test_too_little_time_ends_the_process(language_model):
    plan = whole_plan(language_model, TEXT, Runtime(threads=1), cuts=[5], variants=[None], strategy="pipeline")
    started = time.monotonic()
    with pytest.raises(ExecutionError, match="not done after"):
        run_jobs([ElementJob(threads=1, plans=[plan], warmup=0, repeats=10**6)], ElementAnswer, 1.0)
    assert time.monotonic() - started < 10
