"""A resolved problem with some of its fields changed, checked as if the file had said so."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.checks import check_problem
from edgeopt.profiles.findings import field_types, known_keys, translate
from edgeopt.profiles.library import nearest
from edgeopt.profiles.loader import load_device, load_model, load_network
from edgeopt.profiles.problem import Problem
from edgeopt.profiles.reader import FieldPath, Flaw, field_name

__all__ = ["Editor"]

_PART = re.compile(r"\.?(?P<key>[A-Za-z_][A-Za-z0-9_-]*)|\[(?P<index>[^\[\]]+)\]")

#: Parts that a name of the library may stand for, as in a problem file.
_BY_NAME = {"model": load_model, "network": load_network}


class Editor:
    """Changes fields of one problem.

    Parameters
    ----------
    problem
        As :func:`edgeopt.profiles.load_problem` returns it: nothing in it is a name of the library any more.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._data = problem.model_dump(mode="json", by_alias=True)
        self._parts = {name: getattr(problem, name) for name in Problem.model_fields}
        self._library: dict[tuple[str, str], Any] = {}

    def path(self, text: str) -> FieldPath:
        """Read a path as messages write it, ``network.links[0].rate``; devices have names: ``devices[phone].memory``.

        Raises
        ------
        InputError
            Nothing in the problem is called so; the mend names what is near or what there is.
        """
        path: list[str | int] = []
        end = 0
        while match := _PART.match(text, end):
            path.append(self._step(text, path, match["key"] or match["index"]))
            end = match.end()
        if end != len(text) or not path:
            raise _refused(text, f"'{text}' is no field", "write for example workload.steps or devices[0].memory")
        return tuple(path)

    def _step(self, text: str, path: list[str | int], word: str) -> str | int:
        """Return the key or index that a word of a path means, in what lies at ``path``."""
        at = self.value(tuple(path))
        where = field_name(tuple(path)) or "the problem"
        if isinstance(at, list):
            names = [one["name"] for one in at] if path == ["devices"] else []
            if word in names:
                return names.index(word)
            if word.isdecimal() and int(word) < len(at):
                return int(word)
            known = ", ".join(f"{field_name((*path, i))} ({name})" for i, name in enumerate(names))
            last = f"{field_name((*path, 0))} to {field_name((*path, len(at) - 1))}" if at else "nothing in it"
            raise _refused(text, f"there is no {field_name((*path, word))}", f"there is {known or last}")
        if isinstance(at, dict):
            known_here = known_keys(Problem, tuple(path), self._data)
            if word in known_here or not known_here:  # pins, rates by dtype and media have keys of their own
                return word
            near = nearest(word, known_here)
            mend = f"did you mean {near}?" if near else f"known: {', '.join(known_here)}"
            raise _refused(text, f"there is no '{word}' in {where}", mend)
        shown = "is not given in this problem" if at is None else f"is {at!r}"
        raise _refused(text, f"{where} {shown}, and has no field '{word}'", f"write {where} alone")

    def value(self, path: FieldPath) -> Any:
        """Return what lies at a path as a file would say it; ``None`` where nothing does."""
        at = self._data
        for part in path:
            try:
                at = at[part]
            except (KeyError, IndexError):
                return None
        return at

    def types(self, path: FieldPath) -> list[Any]:
        """Return the types that the value at a path may have."""
        return field_types(Problem, path, self._data)

    def changed(self, changes: Mapping[FieldPath, Any]) -> Problem:
        """Return the problem with other values at some paths.

        Parameters
        ----------
        changes
            Path → value as a file says it: text with a unit, a number, a name of the library for ``model``,
            ``network`` and ``devices[i]`` (which keeps its name in the problem). As in a file, a device's memory that
            is given here is what plans may use: the margin of its profile goes.

        Raises
        ------
        InputError
            Everything that is wrong with the values, or with how they fit together.
        """
        parts = dict(self._parts)
        for path in sorted(changes, key=len):  # whole parts before what lies inside them
            _put(parts, path, self._plain(path, changes[path]))
        for name, part in parts.items():
            if name == "devices":
                parts[name] = [_without_margin(one, i, changes) for i, one in enumerate(part)]
        try:
            problem = Problem.model_validate(parts, context={"from_file": True})
        except ValidationError as error:
            raise _all_refused(translate(error, Problem, parts)) from None
        if flaws := list(check_problem(problem)):
            raise _all_refused(flaws)
        return problem

    def _plain(self, path: FieldPath, value: Any) -> Any:
        """Return a value, or the part of the library that it names."""
        by_name = path in (("model",), ("network",)) or (path[0] == "devices" and len(path) == 2)
        if not by_name or not isinstance(value, str):
            return value
        key = (field_name(path), value)
        if key not in self._library:
            load = _BY_NAME.get(str(path[0]), load_device)
            try:
                part = load(value)
            except InputError as error:
                own = [Finding(field_name(path), one.message, one.mend) for one in error.findings]
                raise InputError(own) from None
            if path[0] == "devices":
                part = part.model_copy(update={"name": self._data["devices"][path[1]]["name"]})
            self._library[key] = part
        return self._library[key]


def _put(parts: dict[str, Any], path: FieldPath, value: Any) -> None:
    """Write a value; every part on the way to it becomes plain data of its own."""
    at: Any = parts
    for part in path[:-1]:
        inner = at[part]
        at[part] = inner.model_dump(mode="json", by_alias=True) if isinstance(inner, BaseModel) else copy.copy(inner)
        at = at[part]
    at[path[-1]] = value


def _without_margin(device: Any, index: int, changes: Mapping[FieldPath, Any]) -> Any:
    if ("devices", index, "memory") not in changes or ("devices", index, "margin") in changes:
        return device
    return {**device, "margin": None}


def _refused(text: str, message: str, mend: str) -> InputError:
    return InputError(Finding(text, message, mend))


def _all_refused(flaws: Iterable[Flaw]) -> InputError:
    return InputError([Finding(field_name(flaw.path), flaw.message, flaw.mend) for flaw in flaws])
