"""Run plans for real: processes that hold only their own stages, timed, supervised, checked.

Importing this package loads no torch; its worker processes do.
"""

from __future__ import annotations

from edgeopt.executor.run import LAUNCHERS, execute

__all__ = ["LAUNCHERS", "execute"]
