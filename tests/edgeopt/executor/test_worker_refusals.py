"""What a worker hears from a driver that is broken or of another version, and a driver from a worker that cheats."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import time

import pytest

from edgeopt.errors import ExecutionError
from edgeopt.executor.attempt import Log, _keep_part
from edgeopt.executor.frames import MAX_BYTES, Frames, frame
from edgeopt.executor.layout import Layout
from edgeopt.executor.messages import Failed, Job, ResultPart, dump_job, parse_event
from tests.edgeopt.executor.plans import toy_plan

JOB = json.loads(dump_job(Job(role="worker", plan=toy_plan(("phone", 6)), threads=1, timeout_s=9.0)))
OTHER_PLAN = {**JOB, "plan": {**JOB["plan"], "format": "edgeopt-plan/2"}}

#: What is sent, the words of the answer, and whether it comes as an event (or on standard error alone).
TOLD = {
    "too large": (struct.pack(">I", MAX_BYTES + 1) + b"x" * 100, f"a frame of {MAX_BYTES + 1} bytes is larger", False),
    "half a frame": (frame(b"{}" * 50)[:-3], "the stream ends after 97 of 100 bytes", False),
    "nothing": (b"", "", False),
    "no JSON": (frame(b"\xff\xfe"), "Invalid JSON", True),
    "no job": (frame(b"[1, 2]"), "install edgeopt", True),
    "a field too many": (frame(json.dumps({**JOB, "code": "import os"}).encode()), "job.code", True),
    "another plan": (frame(json.dumps(OTHER_PLAN).encode()), "job.plan.format", True),
}


def test_a_worker_refuses_what_is_no_job_of_its_version() -> None:
    command = [sys.executable, "-P", "-m", "edgeopt.executor.worker"]
    pipe = subprocess.PIPE
    started = {case: subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) for case in TOLD}
    for case, process in started.items():
        data, words, as_event = TOLD[case]
        try:
            said, errors = process.communicate(data, timeout=60)
        finally:
            process.kill()
        events = [parse_event(message) for message in Frames().feed(said)]
        assert process.returncode == 1, (case, errors)
        assert b"Traceback" not in errors, (case, errors)
        if as_event:
            (event,) = events
            assert isinstance(event, Failed), (case, event)
            assert event.kind == "input", (case, event)
            assert words in event.message, (case, event.message)
        else:
            assert events == [], case
            assert words in errors.decode(), (case, errors)


def test_a_result_is_taken_from_the_source_alone_and_not_without_bound(monkeypatch) -> None:
    source, other = Layout.of(toy_plan(("phone", 2), ("server", 6))).hosts
    part, log = ResultPart(data=b"AAAA"), Log()
    with tempfile.TemporaryFile() as file:
        _keep_part(part, source, log, file.fileno())
        _keep_part(part, source, log, file.fileno())
        assert (log.result_bytes, file.read()) == (6, bytes(6))
        with pytest.raises(ExecutionError, match="device 'server': it sent a result that is not its to send"):
            _keep_part(part, other, log, file.fileno())
        monkeypatch.setattr("edgeopt.executor.attempt._RESULT_BYTES", 8)
        with pytest.raises(ExecutionError, match="device 'phone': it sent a result larger than"):
            _keep_part(part, source, log, file.fileno())
        assert file.seek(0, 2) == 6


@pytest.mark.torch
def test_tensors_that_are_none_are_refused_before_anything_is_allocated() -> None:
    pytest.importorskip("torch")
    from safetensors import SafetensorError

    from edgeopt.executor.packing import thaw, unpack

    huge = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    wrong = [b"", b"junk", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", len(huge)) + huge + bytes(8)]
    for data in wrong:
        started_s = time.monotonic()
        with pytest.raises(SafetensorError):
            thaw(data)
        assert time.monotonic() - started_s < 1.0
    with pytest.raises(ValueError, match="base64"):
        unpack("&&&&")
