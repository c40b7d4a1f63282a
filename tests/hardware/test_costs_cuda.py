"""Opt-in: the accuracy benchmark of costs on a CUDA device, timed by events; skipped with the reason without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.profiler import profile_device

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
]

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "costs.py"


def test_rates_of_the_gpu_are_plausible():
    device = profile_device("gpu", threads=1, dtypes=("float16",), accelerator="cuda")
    assert device.compute["float16"] > 1e12
    assert device.memory == torch.cuda.mem_get_info()[1]
    assert 1e-7 < device.launch_overhead < 1e-3
    assert device.runtime.accelerator == "cuda"
    assert device.margin.basis == "measured"


def test_tables_predict_whole_models_on_the_gpu():
    command = [sys.executable, str(SCRIPT), "--device", "cuda", "--processes", "2", "--repeats", "3"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    document = json.loads(output.splitlines()[-1])
    assert document["device"] == "cuda"
    assert document["settings"] >= 20
    assert document["tables_median"] <= 0.05
