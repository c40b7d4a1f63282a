"""Read profiles and problems by name or path."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.device import Device
from edgeopt.profiles.library import KINDS, find, is_path, known_names, nearest, plain_kind
from edgeopt.profiles.model import Model
from edgeopt.profiles.network import Network
from edgeopt.profiles.plans import plan_of
from edgeopt.profiles.problem import Problem
from edgeopt.profiles.reader import Document, read_document
from edgeopt.profiles.resolve import resolve_problem, resolve_profile
from edgeopt.profiles.writer import parse_own

__all__ = ["kind_of", "load", "load_device", "load_model", "load_network", "load_problem", "validate"]

Ref = str | os.PathLike[str]


def _open(ref: Ref, kind: str) -> Document:
    if not isinstance(ref, str):
        return read_document(ref)
    try:
        return read_document(find(ref, kind))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(Finding(kind, *error.args)) from None


def load_problem(ref: Ref) -> Problem:
    """Read a problem and everything it refers to.

    Parameters
    ----------
    ref
        A name of the library, a path as text (it ends in ``.yaml``, ``.yml`` or ``.json``), or any path object.

    Raises
    ------
    InputError
        With every mistake that was found, each with field, file, line and mend.
    """
    document = _open(ref, "problem")
    kind = document.data.get("kind") or ("plan" if "format" in document.data else None)
    if kind is not None:
        raise InputError(document.finding(("kind",), f"this is a {kind}, not a problem", "give a problem file"))
    return resolve_problem(document)


def load_device(ref: Ref) -> Device:
    """Read a device by name or path; raises :class:`~edgeopt.errors.InputError` like :func:`load_problem`."""
    return resolve_profile(_open(ref, "device"), "device")


def load_model(ref: Ref) -> Model:
    """Read a model by name or path; raises :class:`~edgeopt.errors.InputError` like :func:`load_problem`."""
    return resolve_profile(_open(ref, "model"), "model")


def load_network(ref: Ref) -> Network:
    """Read a network by name or path; raises :class:`~edgeopt.errors.InputError` like :func:`load_problem`."""
    return resolve_profile(_open(ref, "network"), "network")


def load(ref: Ref, kind: str | None = None) -> BaseModel:
    """Read a profile, problem or plan of whatever kind.

    Parameters
    ----------
    ref
        A name of the library, or a path.
    kind
        ``device``, ``model``, ``network`` or ``problem``; default: what the file says, or where the name is found.

    Raises
    ------
    InputError
        Nothing is called so, a name is used by several kinds, or the file is wrong.
    """
    if kind is None and isinstance(ref, str) and not is_path(ref):
        kinds = [one for one in KINDS if ref in known_names(one)]
        if len(kinds) > 1:
            raise InputError(
                Finding("name", f"'{ref}' is a {' and a '.join(kinds)}", f"say which, for example {kinds[0]}")
            )
        if not kinds:
            return _nothing(ref)
        kind = kinds[0]
    if kind is not None:
        kind = plain_kind(kind)
        return {"device": load_device, "model": load_model, "network": load_network, "problem": load_problem}[kind](ref)
    return _resolve(_open(ref, "profile"))


def _nothing(ref: str) -> BaseModel:
    near = nearest(ref, [name for kind in KINDS for name in known_names(kind)])
    try:
        find(ref, "profile")
    except ValueError as error:
        message, mend = error.args
        raise InputError(Finding("name", message, f"did you mean {near}?" if near else mend)) from None
    raise AssertionError("no kind of profile is called profile")


def kind_of(document: Document) -> str:
    """Tell what a file holds: by its ``kind``, else by the keys that only one kind has.

    Raises
    ------
    InputError
        Neither says.
    """
    data = document.data
    if data.get("kind") in ("device", "model", "network"):
        return data["kind"]
    if "kind" in data:
        near = nearest(str(data["kind"]), KINDS)
        mend = f"did you mean {near}?" if near else "write device, model or network"
        raise InputError(document.finding(("kind",), f"'{data['kind']}' is not a kind of profile", mend))
    for kind, keys in {
        "plan": ("format",),
        "problem": ("devices", "workload", "objective", "constraints"),
        "model": ("family",),
        "device": ("compute", "memory_bandwidth"),
        "network": ("links", "default"),
    }.items():
        if any(key in data for key in keys):
            return kind
    raise InputError(document.finding((), "nothing says what this file is", "add `kind: device`, `model` or `network`"))


def _resolve(document: Document) -> BaseModel:
    kind = kind_of(document)
    if kind == "plan":
        return plan_of(document)
    return resolve_problem(document) if kind == "problem" else resolve_profile(document, kind)


def validate(path: Ref) -> list[Finding]:
    """Check a profile, problem or plan file; return everything that is wrong with it (empty: nothing is)."""
    try:
        _resolve(read_document(Path(path), parse_own if Path(path).suffix != ".json" else None))
    except InputError as error:
        return error.findings
    return []
