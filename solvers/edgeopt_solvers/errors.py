"""Exceptions of the solvers.

::

    SolverError
    ├── InstanceError (ValueError)      the arrays make no problem: which field, which value, how to mend it
    ├── UnsupportedError (ValueError)   this backend cannot express a feature; names one that can
    ├── BackendError (RuntimeError)     a backend is missing, crashed, or answered nonsense
    └── CheckError (AssertionError)     a solver's claim and the independent recomputation disagree: our bug
"""

from __future__ import annotations

__all__ = ["BackendError", "CheckError", "InstanceError", "SolverError", "UnsupportedError"]


class SolverError(Exception):
    """Root of every exception raised on purpose by ``edgeopt_solvers``."""


class InstanceError(SolverError, ValueError):
    """An instance is malformed: wrong shape, sign, unit magnitude or reference."""


class UnsupportedError(SolverError, ValueError):
    """The backend cannot express a feature of the instance; the message names the way out."""


class BackendError(SolverError, RuntimeError):
    """A backend is not installed, failed, or returned a status that maps to nothing."""


class CheckError(SolverError, AssertionError):
    """The checker recomputed a different cost, or found the returned decisions infeasible."""
