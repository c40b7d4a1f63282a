"""What can go wrong, one tree.

::

    EdgeoptError
    ├── InputError (ValueError)             a file or a request is wrong; lists every finding with its mend
    ├── NoPlanError                         no plan satisfies the limits; says which limit binds and by how much
    ├── TimeLimitError                      time ran out before any plan was found
    ├── ExecutionError (RuntimeError)       a run failed; says which stage, on which device, why
    ├── CheckFailedError                    a recomputation disagrees with what was claimed
    └── MissingDependencyError (ImportError)  an optional package is absent; says how to install it
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CheckFailedError", "EdgeoptError", "ExecutionError", "Finding", "InputError", "MissingDependencyError",
    "NoPlanError", "TimeLimitError",
]  # fmt: skip


class EdgeoptError(Exception):
    """Base of everything this package raises on purpose."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with an input, and how to mend it.

    Parameters
    ----------
    field
        Path of the field, as in ``devices[1].memory``; empty for the file as a whole.
    message
        What is wrong, with values and units.
    mend
        What to write instead.
    file, line
        Where it was read (lines count from 1), if it came from a file.
    """

    field: str
    message: str
    mend: str = ""
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = self.file or ""
        if place and self.line is not None:
            place += f":{self.line}"
        head = ": ".join(part for part in (place, self.field, self.message) if part)
        return f"{head}; {self.mend}" if self.mend else head


class InputError(EdgeoptError, ValueError):
    """A file or a request is wrong. ``findings`` holds everything that was found, not only the first."""

    def __init__(self, findings: Iterable[Finding] | Finding | str) -> None:
        if isinstance(findings, str):
            findings = Finding(field="", message=findings)
        self.findings: list[Finding] = [findings] if isinstance(findings, Finding) else list(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


class NoPlanError(EdgeoptError):
    """No plan satisfies all limits. The message names the binding limit and by how much it is missed."""


class TimeLimitError(EdgeoptError):
    """The time limit passed before any plan was found; a plan may exist."""


class ExecutionError(EdgeoptError, RuntimeError):
    """A run failed.

    Parameters
    ----------
    reason
        What happened.
    stage, device
        Where, if one stage on one device can be named.
    """

    def __init__(self, reason: str, *, stage: int | None = None, device: str | None = None) -> None:
        self.reason, self.stage, self.device = reason, stage, device
        where = " on ".join(
            part
            for part in (f"stage {stage}" if stage is not None else "", f"device '{device}'" if device else "")
            if part
        )
        super().__init__(f"{where}: {reason}" if where else reason)


class CheckFailedError(EdgeoptError):
    """A recomputation from the decisions alone disagrees with what was claimed."""


class MissingDependencyError(EdgeoptError, ImportError):
    """An optional package is absent.

    Parameters
    ----------
    package
        What could not be imported.
    extra
        The extra of ``edgeopt`` that brings it.
    purpose
        What needs it, as in "executing a plan".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra, self.purpose = package, extra, purpose
        super().__init__(f"{purpose} needs {package}; install it with: pip install 'edgeopt[{extra}]'")
