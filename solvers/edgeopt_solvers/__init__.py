"""Exact placement and bandwidth solvers for distributed generative models: arrays in, decisions with a proof out.

>>> from edgeopt_solvers import solve
>>> from edgeopt_solvers.chain import Chain
>>> chain = Chain(
...     compute_s=[[1.0, 1.0], [0.5, 0.5]], cut_bytes=[10.0, 10.0, 10.0],
...     rate_bytes_per_s=[[0, 100.0], [100.0, 0]], latency_s=[[0, 0.01], [0.01, 0]],
... )
>>> round(solve(chain).objective, 3)
1.22
"""

from __future__ import annotations

from edgeopt_solvers.errors import BackendError, CheckError, InstanceError, SolverError, UnsupportedError
from edgeopt_solvers.result import Result, Status
from edgeopt_solvers.solve import WarmStart, solve

__all__ = [
    "BackendError",
    "CheckError",
    "InstanceError",
    "Result",
    "SolverError",
    "Status",
    "UnsupportedError",
    "WarmStart",
    "__version__",
    "solve",
]

__version__ = "0.1.0"
