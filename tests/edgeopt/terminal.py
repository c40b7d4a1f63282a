"""A person at a terminal: starts a command on a pseudo-terminal, waits for its questions, types."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence

__all__ = ["converse"]

_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[=>78]|\][^\x07]*\x07|\([AB0])")


def converse(
    words: Sequence[str], answers: Sequence[tuple[str, str]], cwd: os.PathLike[str] | str, timeout_s: float = 60
) -> tuple[int, str]:
    """Run ``edgeopt`` with ``words``, type each answer once its question is there.

    Returns
    -------
    int
        Exit code.
    str
        What the terminal received, without its control sequences.
    """
    terminal, inner = pty.openpty()
    termios.tcsetwinsize(inner, (50, 160))
    environment = {
        **os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "50", "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeopt", *words],
        stdin=inner, stdout=inner, stderr=inner, cwd=cwd, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(inner)
    seen, place, waiting = "", 0, list(answers)
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += os.read(terminal, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
            if waiting:
                at = _ANSI.sub("", seen).find(waiting[0][0], place)
                if at >= 0:
                    place = at + len(waiting[0][0])
                    os.write(terminal, waiting.pop(0)[1].encode())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 1))
        code = process.poll()
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    text = _ANSI.sub("", seen).replace("\r\n", "\n")
    assert not waiting, f"never asked: {waiting[0][0]!r} in {text!r}"
    assert code is not None, f"still running: {text!r}"
    return code, text
