"""An append-only record of a sweep: each finished point is one line, on the disk before the next one begins.

A process that is killed leaves at most one torn line, the last, which the next one cuts off.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeopt.errors import Finding, InputError

__all__ = ["FORMAT", "Journal"]

FORMAT = "edgeopt-sweep/1"


class Journal:
    """Records of finished points, in a file.

    Parameters
    ----------
    path
        The file; it is made where it is missing.
    head
        What the records belong to, as plain data: a file with another head is refused.
    afresh
        Forget what the file holds.

    Attributes
    ----------
    records
        Of an earlier run, by point.

    Raises
    ------
    InputError
        On construction: the file belongs to another sweep, is no journal, or another process writes to it.
    """

    def __init__(self, path: Path, head: dict[str, Any], afresh: bool = False) -> None:
        self.path = path
        self._head = {"format": FORMAT, **head}
        self.records: dict[int, dict[str, Any]] = {}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            self._lock()
            if afresh:
                os.ftruncate(self._file, 0)
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def add(self, index: int, record: dict[str, Any]) -> None:
        """Append the record of a point; it is on the disk when this returns."""
        self._append({"index": index, **record})

    def _lock(self) -> None:
        """Keep other processes away for as long as the file is open; the system lets go of it if this one dies."""
        with contextlib.suppress(ImportError):
            import fcntl  # not on Windows

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._refused("another process writes to it", "wait for it, or give another -o") from None

    def _read(self) -> None:
        """Read what is there; cut off what a killed process did not finish."""
        with open(os.dup(self._file), "rb") as stream:
            stream.seek(0)
            lines = stream.readlines()
        if not lines or (len(lines) == 1 and _line(self._head).startswith(lines[0]) and not lines[0].endswith(b"\n")):
            os.ftruncate(self._file, 0)
            self._append(self._head)
            _sync_folder(self.path.parent)
            return
        if (head := _parsed(lines[0])) != self._head:
            raise self._other(head)
        end = len(lines[0])
        for line in lines[1:]:
            record = _parsed(line)
            if record is None or "index" not in record:  # of which a crash of the machine may have left any bytes
                break
            self.records[record.pop("index")] = record
            end += len(line)
        os.ftruncate(self._file, end)

    def _append(self, record: dict[str, Any]) -> None:
        line = memoryview(_line(record))
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)

    def _other(self, head: dict[str, Any] | None) -> InputError:
        if head is None or not str(head.get("format", "")).startswith("edgeopt-sweep/"):
            return self._refused("it is no journal of a sweep", "give another -o")
        differs = [key for key, value in self._head.items() if head.get(key) != value]
        return self._refused(
            f"it belongs to another sweep, with another {' and '.join(differs)}",
            "give another -o, or begin anew with --restart",
        )

    def _refused(self, message: str, mend: str) -> InputError:
        return InputError(Finding("-o", f"journal '{self.path}': {message}", mend))


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the record of a whole line, ``None`` for anything else."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _sync_folder(folder: Path) -> None:
    """Make a new file's name survive a crash of the machine as well."""
    with contextlib.suppress(OSError):  # not every system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
