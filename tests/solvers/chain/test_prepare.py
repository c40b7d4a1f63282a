"""What is compiled ahead of time is all that the engines call, and with the types they call it with."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from edgeopt_solvers.chain import large, prepare
from edgeopt_solvers.chain.large.compiled import KERNELS, affordable, compiled
from edgeopt_solvers.solve import Options
from tests.solvers.generators import cluster

FOLDER = Path(large.__file__).parent


def test_every_kernel_that_is_called_is_listed() -> None:
    called = set()
    for path in FOLDER.glob("*.py"):
        if not path.name.startswith("kernels_"):
            called |= set(re.findall(r"(kernels_[a-z]+)\.([a-z_]+)\(", path.read_text()))
    listed = {(module, name) for modules in KERNELS.values() for module, names in modules.items() for name in names}
    assert called == listed


def test_prepared_kernels_are_not_compiled_again() -> None:
    assert prepare() > 0.0
    assert compiled("joint", "throughput")
    assert affordable(2.0, "joint", "throughput")
    kernels = {
        (module, name): getattr(importlib.import_module(f"{large.__name__}.{module}"), name)
        for modules in KERNELS.values() for module, names in modules.items() for name in names
    }  # fmt: skip
    before = {key: len(kernel.signatures) for key, kernel in kernels.items()}
    assert min(before.values()) >= 1
    plain, star = {"links": "asymmetric"}, {"links": "star", "equal_layers": True}
    for seed in (1, 2):
        for fields in ({}, plain, star, {"objective": "throughput"}):
            large.try_solve(cluster(40, 20, seed=seed, load=0.5, **fields), Options(time_limit_s=5.0))
    assert {key: len(kernel.signatures) for key, kernel in kernels.items()} == before
