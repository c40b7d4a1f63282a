"""Where profiles are found: by name in the library or the user's own folders, or by path.

The library is ``profiles/`` in a checkout and ``edgeopt/_library`` in an installed wheel. Folders named in the
environment variable ``EDGEOPT_PROFILES`` (laid out alike: ``devices/``, ``models/`` and so on) come first.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.reader import read_document

__all__ = [
    "KINDS", "SUFFIXES", "find", "is_path", "known_names", "known_or_near", "list_profiles", "nearest", "plain_kind",
    "roots",
]  # fmt: skip

KINDS = ("device", "model", "network", "problem")
SUFFIXES = (".yaml", ".yml", ".json")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def roots() -> list[Path]:
    """Return the folders that are searched, first the user's."""
    own = [Path(part) for part in os.environ.get("EDGEOPT_PROFILES", "").split(os.pathsep) if part]
    package = Path(__file__).resolve().parents[1]
    candidates = [package / "_library", package.parent / "profiles"]
    return own + [folder for folder in candidates if (folder / "devices").is_dir()][:1]


def plain_kind(kind: str) -> str:
    """Return ``device`` for ``device`` or ``devices``, and so on.

    Raises
    ------
    InputError
        No such kind.
    """
    if kind.removesuffix("s") not in KINDS:
        raise InputError(Finding("kind", f"there is no kind '{kind}'", f"use one of {', '.join(KINDS)}"))
    return kind.removesuffix("s")


def is_path(ref: str) -> bool:
    """Tell a path from a name: a path ends in .yaml, .yml or .json."""
    return ref.lower().endswith(SUFFIXES)


def find(ref: str, kind: str, folder: Path | None = None) -> Path:
    """Return the file that a name or path means.

    Parameters
    ----------
    ref
        A name of the library, or a path.
    kind
        What is looked for.
    folder
        Where relative paths start; default: the working directory.

    Raises
    ------
    ValueError
        With ``(message, mend)``: the caller knows field and line.
    """
    if "\0" in ref:
        raise ValueError(f"{ref!r} holds a null character", "write a plain name")
    if is_path(ref):
        path = Path(ref).expanduser()
        path = path if path.is_absolute() or folder is None else folder / path
        if not path.is_file():
            what = "a folder" if path.is_dir() else "no such file"
            raise ValueError(
                f"'{ref}' is {what}" if path.is_dir() else f"there is no file '{ref}'", _mend(ref, kind, True)
            )
        return path
    if not _NAME.fullmatch(ref):
        message = f"'{ref[:60]}' is not a {kind} name" + (": a name has no folders" if re.search(r"[/\\]", ref) else "")
        raise ValueError(message, f"write a name of the library, or a path that ends in {', '.join(SUFFIXES)}")
    for root in roots():
        for suffix in SUFFIXES:
            path = root / f"{kind}s" / f"{ref}{suffix}"
            if path.is_file():
                return path
    raise ValueError(f"there is no {kind} '{ref}'", _mend(ref, kind, False))


def _mend(ref: str, kind: str, as_path: bool) -> str:
    known = known_names(kind)
    stem = re.split(r"[/\\]", ref)[-1].rsplit(".", 1)[0] if as_path else ref
    near = nearest(stem, known)
    if near:
        return f"did you mean {near}?"
    return f"known {kind}s: {', '.join(known)}" if known else f"no {kind}s are installed; write a path"


def nearest(word: str, known: Any) -> str:
    """Return the known words nearest to ``word`` as text for a message, or an empty string."""
    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), list(lower), n=2, cutoff=0.6)
    return " or ".join(f"'{lower[name]}'" for name in found)


def known_or_near(word: str, known: Sequence[str]) -> str:
    """Return what to write instead of ``word``: the nearest known words, or all of them."""
    near = nearest(word, known)
    return f"did you mean {near}?" if near else f"known: {', '.join(dict.fromkeys(known)) or 'none'}"


def known_names(kind: str) -> list[str]:
    """Return the names of all profiles of a kind, sorted."""
    return sorted({path.stem for root in roots() for path in _files(root, kind)})


def _files(root: Path, kind: str) -> list[Path]:
    folder = root / f"{kind}s"
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES) if folder.is_dir() else []


def list_profiles(kind: str | None = None) -> list[dict[str, Any]]:
    """List what can be referred to by name.

    Parameters
    ----------
    kind
        ``device``, ``model``, ``network`` or ``problem`` (or their plurals); default: all.

    Returns
    -------
    list of dict
        ``kind``, ``name``, ``description`` and ``file`` of each, in this order of kinds, by name.
    """
    entries = {}
    for one in KINDS if kind is None else [plain_kind(kind)]:
        for root in reversed(roots()):  # the user's own come last and win
            for path in _files(root, one):
                try:
                    description = str(read_document(path).data.get("description") or "")
                except InputError:  # a broken file is listed, so that it can be validated
                    description = "(cannot be read: edgeopt profiles validate says why)"
                entries[one, path.stem] = {
                    "kind": one, "name": path.stem, "description": " ".join(description.split()), "file": str(path),
                }  # fmt: skip
    order = {one: index for index, one in enumerate(KINDS)}
    return [entries[key] for key in sorted(entries, key=lambda key: (order[key[0]], key[1]))]
