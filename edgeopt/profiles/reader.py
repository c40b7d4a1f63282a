"""YAML and JSON text as plain data, with the line of every value.

Built from parser events, so that a hostile file is refused while it is read: size, depth and number of values are
limited, there are no aliases (which could multiply) and no tags (which could construct things), and a key may
appear once per mapping. Values are those of the YAML 1.2 core schema: null, truth values, numbers, text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.errors import Finding, InputError

__all__ = [
    "MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "MAX_YAML_CHARACTERS", "Document", "FieldPath", "Flaw", "field_name",
    "parse_text", "read_document", "shown",
]  # fmt: skip

#: Largest file; only a plan, or JSON, can be that large.
MAX_BYTES = 8 * 2**20
#: Largest text for the general YAML parser, which needs up to a microsecond and a half per character.
MAX_YAML_CHARACTERS = 2**20
MAX_DEPTH = 40
MAX_VALUES = 50_000

FieldPath = tuple[str | int, ...]


class Flaw(NamedTuple):
    """Something wrong at a place in plain data; a :class:`Document` turns it into a finding."""

    path: FieldPath
    message: str
    mend: str


_INT = re.compile(r"[-+]?[0-9]{1,300}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


def field_name(path: FieldPath) -> str:
    """Write a path as people do: ``devices[1].memory``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


@dataclass(frozen=True)
class Document:
    """A file's content and where each value stands in it."""

    path: Path
    text: str
    data: Any
    known_lines: dict[FieldPath, int] | None = None

    @property
    def name(self) -> str:
        """The path as shown to people: relative to the working directory where it lies below."""
        return shown(self.path)

    @cached_property
    def lines(self) -> dict[FieldPath, int]:
        """Line of every value; computed on demand for files that were read by a faster parser."""
        if self.known_lines is not None:
            return self.known_lines
        try:
            return parse_text(self.text, self.path)[1]
        except InputError:  # too large to look for lines
            return {}

    def line(self, path: FieldPath) -> int | None:
        """Return the line of a value, or of the nearest value around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None

    def finding(self, path: FieldPath, message: str, mend: str) -> Finding:
        """Return a finding about a value of this file."""
        return Finding(field_name(path), message, mend, file=self.name, line=self.line(path))


def shown(path: Path) -> str:
    """Return a path relative to the working directory if it lies below it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def read_document(path: str | os.PathLike[str], fast: Callable[[str], Any] | None = None) -> Document:
    """Read a YAML or JSON file that holds one mapping.

    Parameters
    ----------
    path
        The file.
    fast
        A quicker parser for text of a known form; whatever it refuses with ``ValueError`` is read the general way.

    Raises
    ------
    InputError
        No such file, too large, not text, not YAML, not a mapping, or a limit is passed.
    """
    path = Path(path)
    text = _read_text(path)
    fast = _json if path.suffix == ".json" and fast is None else fast
    if fast is not None:
        try:
            data = fast(text)
        except (ValueError, RecursionError):
            pass  # the general parser says what is wrong and in which line
        else:
            if isinstance(data, dict):
                return Document(path, text, data)
    data, lines = parse_text(text, path)
    if not isinstance(data, dict):
        kind = "empty" if data is None else "a list" if isinstance(data, list) else "a single value"
        raise _refused(path, f"the file is {kind}, not a mapping", "write 'key: value' lines", 1)
    return Document(path, text, data, lines)


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file" if path.exists() else None
            raise _refused(path, f"this is {kind}" if kind else "there is no such file", "name a YAML or JSON file")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise _refused(path, f"cannot be read: {reason}", "name a readable YAML or JSON file") from error
    if len(raw) > MAX_BYTES:
        limit = f"{MAX_BYTES // 2**20} MiB"
        raise _refused(
            path, f"the file is larger than {limit}", f"split it; a profile or problem has less than {limit}"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _refused(path, "the file is not UTF-8 text", "save it as UTF-8", line) from error


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("duplicate key")
    return data


def parse_text(text: str, path: Path) -> tuple[Any, dict[FieldPath, int]]:
    """Parse YAML (or JSON, which is YAML) into plain data and the line of every value.

    Raises
    ------
    InputError
        Not YAML, more than one document, or something the module's docstring excludes.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError, YAMLStreamError

    if len(text) > MAX_YAML_CHARACTERS:
        limit = f"{MAX_YAML_CHARACTERS // 2**20} MiB"
        raise _refused(path, f"YAML of more than {limit} is not read", "split it into several profiles")
    builder = _Builder(path)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.take(event)
    except (YAMLError, YAMLStreamError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        position = getattr(error, "position", None)
        line = mark.line + 1 if mark else text.count("\n", 0, position) + 1 if isinstance(position, int) else None
        mend = "check indentation, quotes, and ': ' after keys" if mark else "remove control characters"
        raise _refused(path, f"not valid YAML: {problem}", mend, line) from error
    except RecursionError:
        raise _refused(path, "nested too deeply", f"use at most {MAX_DEPTH} levels") from None
    return builder.root, builder.lines


def _refused(path: Path, message: str, mend: str, line: int | None = None, field: str = "") -> InputError:
    return InputError(Finding(field, message, mend, file=shown(path), line=line))


class _Builder:
    """Collects events into data; the stack holds ``[container, pending key]``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root: Any = None
        self.lines: dict[FieldPath, int] = {}
        self._stack: list[list[Any]] = []
        self._where: list[str | int] = []
        self._documents = self._values = 0

    def take(self, event: Any) -> None:
        kind = type(event).__name__
        if kind == "ScalarEvent":
            self._scalar(event)
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            self._open({} if kind == "MappingStartEvent" else [], event)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self._stack.pop()
            self._close_value()
        elif kind == "AliasEvent":
            raise self._error(
                event, "aliases (*name) are not read", "write the value out, or move it to a profile of its own"
            )
        elif kind == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1:
                raise self._error(event, "the file holds more than one document", "keep one; remove the '---' line")

    def _error(self, event: Any, message: str, mend: str) -> InputError:
        return _refused(self.path, message, mend, event.start_mark.line + 1, field_name(tuple(self._where)))

    def _check(self, event: Any) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._error(event, f"the file holds more than {MAX_VALUES} values", "split it into several profiles")
        if getattr(event, "tag", None):
            raise self._error(event, f"the tag '{event.tag}' is not read", "remove it")

    def _open(self, container: Any, event: Any) -> None:
        self._check(event)
        if len(self._stack) >= MAX_DEPTH:
            self._where.clear()  # a path of that depth helps nobody
            raise self._error(
                event, f"nested more than {MAX_DEPTH} levels deep", "no profile needs that; check the brackets"
            )
        if self._stack and isinstance(self._stack[-1][0], dict) and self._stack[-1][1] is None:
            raise self._error(
                event, "a key is a mapping or a list", "keys are plain text; check for braces around a value"
            )
        self._place(container, event)
        self._stack.append([container, None])

    def _scalar(self, event: Any) -> None:
        self._check(event)
        if self._stack and isinstance(self._stack[-1][0], dict) and self._stack[-1][1] is None:
            key = event.value
            self._where.append(key)
            if key in self._stack[-1][0]:
                first = self.lines[tuple(self._where)]
                raise self._error(event, f"the key '{key}' is already given in line {first}", "keep one of the two")
            self._stack[-1][1] = key
            self.lines[tuple(self._where)] = event.start_mark.line + 1
            return
        plain = event.style in (None, "")
        self._place(_resolve(event.value) if plain else event.value, event)
        self._close_value()

    def _place(self, value: Any, event: Any) -> None:
        if not self._stack:
            self.root = value
            self.lines[()] = event.start_mark.line + 1
            return
        container, key = self._stack[-1]
        if isinstance(container, dict):
            container[key] = value
            if isinstance(value, (dict, list)):
                return  # its line is the key's
        else:
            self._where.append(len(container))
            container.append(value)
        self.lines.setdefault(tuple(self._where), event.start_mark.line + 1)

    def _close_value(self) -> None:
        """A value is complete: forget its key or index."""
        if self._stack:
            self._where.pop()
            self._stack[-1][1] = None


def _resolve(text: str) -> Any:
    """Return the value of a plain (unquoted) scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
