"""A first problem file: answers to a few questions, as commented YAML that a beginner can go on from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.errors import Finding, InputError
from edgeopt.profiles.library import find
from edgeopt.profiles.loader import load_model
from edgeopt.profiles.model import Diffusion
from edgeopt.profiles.problem import Problem
from edgeopt.profiles.reader import Document, parse_text
from edgeopt.profiles.resolve import resolve_problem

__all__ = ["WORKLOADS", "Draft", "device_of", "draft", "is_diffusion", "workload_of"]

#: What one request is where nobody says otherwise, by whether the model makes images.
WORKLOADS: dict[bool, dict[str, Any]] = {
    False: {"prompt_tokens": 512, "new_tokens": 128},
    True: {"steps": 20, "images": 1},
}

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_ENTRY = re.compile(r"(?:(?P<name>[^=]+)=)?(?P<profile>[^=]+)")


@dataclass(frozen=True, slots=True)
class Draft:
    """Answers.

    Attributes
    ----------
    name
        Of the problem.
    model, network, objective
        As in a problem file.
    devices
        Name in the problem and name (or path) in the library, the source first.
    workload
        Field → value.
    """

    name: str
    model: str
    devices: Sequence[tuple[str, str]]
    network: str
    workload: Mapping[str, Any]
    objective: str = "latency"

    def text(self) -> str:
        """Return the problem file."""
        names = [name for name, _ in self.devices]
        workload = ", ".join(f"{key}: {json.dumps(value)}" for key, value in self.workload.items())
        devices = "\n".join(f"  - {_entry(name, profile)}" for name, profile in self.devices)
        return f"""\
# Written by `edgeopt init`. Change what you like, then `edgeopt solve` this file again.
# Every field that it may have: `edgeopt profiles schema problem`.
name: {_word(self.name)}

# `edgeopt profiles list models` shows the library; a path of a file of your own works everywhere, too.
model: {_word(self.model)}

# The technique; auto takes the best of all that fit the model.
strategy: auto

# One request.
workload: {{{workload}}}

# The first device sends the request and wants the result. What a plan may use of a device's memory can be limited, and
# other numbers of its profile changed: {{profile: {_word(self.devices[0][1])}, name: {_word(names[0])}, memory: 4 GiB}}
devices:
{devices}

# A network of the library has one kind of link between all pairs; with links of your own write
# {{default: {{rate: 50 Mbit/s, latency: 2 ms}}, links: [{{between: [a, b], rate: 1 Gbit/s, latency: 1 ms}}]}}
network: {_word(self.network)}

# latency, throughput, energy or quality, or weights of several: {{latency: 1, energy: 0.1}}
objective: {_word(self.objective)}

# What must hold beside it; take the # off.
# constraints:
#   deadline: 10 s
#   max_stages: 2
#   forbid: [{_word(names[-1])}]
"""


def draft(answers: Draft, path: Path) -> tuple[str, Problem]:
    """Return the problem file for ``path``, and the problem that it describes.

    Raises
    ------
    InputError
        Everything that is wrong with the answers.
    """
    text = answers.text()
    data, lines = parse_text(text, path)
    return text, resolve_problem(Document(path, text, data, lines))


def device_of(text: str, taken: Sequence[str] = ()) -> tuple[str, str]:
    """Read ``NAME=LIBRARY`` or ``LIBRARY``: a name in the problem, and a name or path in the library.

    A library's name that is ``taken`` already gets a number.

    Raises
    ------
    InputError
        Nothing in the library is called so, or the given name is taken.
    """
    match = _ENTRY.fullmatch(text.strip())
    if match is None:
        raise InputError(Finding("--device", f"'{text}' is no device", "write NAME=LIBRARY or LIBRARY"))
    profile = match["profile"].strip()
    try:
        path = find(profile, "device")
    except ValueError as error:
        raise InputError(Finding("--device", *error.args)) from None
    if match["name"]:
        name = match["name"].strip()
        if name in taken:
            raise InputError(Finding("--device", f"a device called '{name}' is there already", "choose another name"))
        return name, profile
    name, k = path.stem, 2
    while name in taken:
        name, k = f"{path.stem}-{k}", k + 1
    return name, profile


def workload_of(words: Sequence[str]) -> dict[str, Any]:
    """Read ``prompt_tokens=512,new_tokens=128``.

    Raises
    ------
    InputError
        A part is not FIELD=NUMBER.
    """
    workload: dict[str, Any] = {}
    for part in (part.strip() for word in words for part in word.split(",")):
        field, _, value = (piece.strip() for piece in part.partition("="))
        try:
            workload[field] = json.loads(value)
        except ValueError:
            mend = "write for example prompt_tokens=512,new_tokens=128 or steps=20"
            raise InputError(Finding("--workload", f"'{part}' is not FIELD=NUMBER", mend)) from None
    return workload


def is_diffusion(model: str) -> bool:
    """Say whether a model makes images.

    Raises
    ------
    InputError
        There is no such model, or its file is wrong.
    """
    try:
        return isinstance(load_model(model), Diffusion)
    except InputError as error:
        raise InputError(
            [Finding("--model", one.message, one.mend, one.file, one.line) for one in error.findings]
        ) from None


def _entry(name: str, profile: str) -> str:
    if name == profile:
        return _word(profile)
    return f"{{profile: {_word(profile)}, name: {_word(name)}}}"


def _word(text: str) -> str:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)
