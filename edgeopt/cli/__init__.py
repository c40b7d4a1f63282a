"""The command line; see :mod:`edgeopt.cli.application`."""

from __future__ import annotations

from edgeopt.cli.application import app, main

__all__ = ["app", "main"]
