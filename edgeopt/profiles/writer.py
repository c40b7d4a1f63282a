"""Plain data as YAML that reads well on top and loads fast below.

Mappings are block style; whatever fits in a line, and every item of a list of mappings, is one line of JSON (which is
YAML). :func:`parse_own` reads exactly this form, many times faster than a YAML parser; a file changed by hand
beyond it is read the general way.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["parse_own", "to_yaml"]

_WIDTH = 100
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# Text that needs no quotes: it cannot be taken for a number, a truth value, a comment or structure.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./()+-]*(?: [A-Za-z0-9_./()+-]+)*")
_QUANTITY = re.compile(r"[0-9][0-9.]*(?:e[+-]?[0-9]+)? [A-Za-z]+(?:/s)?")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
# Not printable in YAML, though JSON would leave it as it is.
_SPECIAL = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_LINE = re.compile(r'( *)(- )?(?:([A-Za-z_][A-Za-z0-9_.-]*|"(?:[^"\\]|\\.)*"):(?: |$))?(.*)')
_SPELLED = {math.inf: ".inf", -math.inf: "-.inf"}
_UNSPELLED = {".inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}


def to_yaml(data: dict[str, Any]) -> str:
    """Write a mapping of plain data (text, numbers, truth values, ``None``, lists, mappings with text keys).

    Floats are written so that they read back bit for bit.
    """
    return "".join(f"{line}\n" for line in _block(data, ""))


def _block(data: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in data.items():
        head = indent + (key if _KEY.fullmatch(key) and key.lower() not in _WORDS else _json(key)) + ":"
        if not isinstance(value, (dict, list)):
            yield f"{head} {_scalar(value)}"
            continue
        line = f"{head} {_json(value)}"
        nested = isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value)
        if not value or (len(line) <= _WIDTH and not nested) or (isinstance(value, list) and not nested):
            yield line
        elif isinstance(value, dict):
            yield head
            yield from _block(value, indent + "  ")
        else:
            yield head
            for item in value:
                yield f"{indent}  - {_json(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) or _QUANTITY.fullmatch(value)
        return value if plain and value.lower() not in _WORDS and len(value) < 500 else _json(value)
    return _flow(value)


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # JSON has no infinity, YAML does
        return _flow(value)
    return _SPECIAL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _SPELLED.get(value, ".nan") if isinstance(value, float) and not math.isfinite(value) else _json(value)


def parse_own(text: str) -> dict[str, Any]:
    """Read what :func:`to_yaml` writes; comment lines and empty lines are allowed.

    Raises
    ------
    ValueError
        The text has another form; it may still be YAML.
    """
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    data, end = _read_block(lines, 0, "")
    if end != len(lines):
        raise ValueError(f"unexpected indentation in line {lines[end]!r}")
    return data


def _read_block(lines: list[str], start: int, indent: str) -> tuple[dict[str, Any], int]:
    data: dict[str, Any] = {}
    while start < len(lines):
        match = _LINE.fullmatch(lines[start])
        if match is None or match[1] != indent or match[2] or match[3] is None:
            break
        key = json.loads(match[3]) if match[3].startswith('"') else match[3]
        if key in data:
            raise ValueError("duplicate key")
        start += 1
        if match[4]:
            data[key] = _value(match[4])
        elif start < len(lines) and lines[start].startswith(f"{indent}  - "):
            data[key], start = _read_list(lines, start, f"{indent}  - ")
        else:
            data[key], start = _read_block(lines, start, f"{indent}  ")
            if not data[key]:
                raise ValueError("no value")
    return data, start


def _read_list(lines: list[str], start: int, head: str) -> tuple[list[Any], int]:
    end = start
    while end < len(lines) and lines[end].startswith(head):
        end += 1
    return [_value(line[len(head) :]) for line in lines[start:end]], end


def _value(text: str) -> Any:
    if text[0] in '{["-0123456789' or text in ("true", "false", "null"):
        if _QUANTITY.fullmatch(text):
            return text
        return _UNSPELLED[text] if text in _UNSPELLED else json.loads(text, object_pairs_hook=_unique)
    if text in _UNSPELLED:
        return _UNSPELLED[text]
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    raise ValueError(f"not a value of the own form: {text[:60]!r}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("duplicate key")
    return data
