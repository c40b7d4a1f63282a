"""What programs that put plans on trial share: their options, what they say meanwhile, and their last line."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.benchmarks.strict import strict_json

__all__ = ["need_hosts", "options", "print_document", "rested_messages_s", "teller"]


def options(doc: str | None, quick: str, *, folder: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the options of all these programs, to which each adds its own.

    Parameters
    ----------
    doc
        The program's docstring, which ``--help`` prints.
    quick
        What ``--quick`` leaves of it.
    folder
        Below ``build``, of a program that keeps its findings and goes on with them when asked to.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{quick}, to see that it works")
    parser.add_argument("--write", type=Path, metavar="FILE", help="page whose own sections are replaced")
    if folder is not None:
        parser.add_argument("--folder", type=Path, default=Path("build") / folder, help="keeps what is found")
        parser.add_argument("--resume", action="store_true", help="keep what the folder holds, do what is missing")
    return parser


def need_hosts() -> None:
    """Leave the program where hosts cannot be emulated, and say why."""
    from edgeopt.executor.netlab import missing

    if reason := missing():
        raise SystemExit(f"no emulated hosts here: {reason}")


def teller() -> Callable[[str], None]:
    """Return what prints a line on standard error, after the seconds since this call."""
    begun = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - begun:6.1f} s] {text}", file=sys.stderr, flush=True)

    return say


def print_document(name: str, *, quick: bool, **found: Any) -> None:
    """Print the last line: one JSON document, whose figures without a value are ``null``."""
    print(strict_json({"benchmark": name, "quick": quick, **found}))


@cache
def rested_messages_s() -> float:
    """What an end of a message takes longer after a rest, from a process of its own: its threads end with it."""
    code = "import os; from edgeopt.profiler.carrying import rested_message_seconds as s; "
    code += "print(s(), flush=True); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return float(done.stdout)
