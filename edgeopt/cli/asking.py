"""Questions on a terminal, with the library's names completed while one types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import questionary

from edgeopt.errors import InputError
from edgeopt.profiles.draft import device_of
from edgeopt.profiles.library import find, list_profiles

__all__ = ["devices", "name_of", "objective", "workload"]


def name_of(kind: str, question: str, default: str) -> str:
    """Ask for a name of the library, or a path."""
    entries = {entry["name"]: entry["description"] for entry in list_profiles(kind)}
    return _typed(question, entries, lambda text: find(text, kind), default)


def devices() -> list[tuple[str, str]]:
    """Ask for devices until an empty answer: name in the problem, and in the library."""
    entries = {entry["name"]: entry["description"] for entry in list_profiles("device")}
    found: list[tuple[str, str]] = []
    while True:
        read = partial(device_of, taken=[name for name, _ in found])
        if not found:
            text = _typed("Which device sends the request? (desktop=rtx-4090 gives it a name)", entries, read)
        else:
            text = _typed("Which further device? (Enter: no more)", entries, read, "")
        if not text:
            return found
        found.append(read(text))


def workload(default: Mapping[str, Any]) -> dict[str, Any]:
    """Ask what one request is."""
    words = {
        "prompt_tokens": "How many tokens has the prompt?", "new_tokens": "How many tokens are generated?",
        "steps": "How many denoising steps?", "images": "How many images?",
    }  # fmt: skip
    return {field: int(_typed(words[field], {}, _whole, str(value))) for field, value in default.items()}


def objective() -> str:
    """Ask what is to be small."""
    entries = {
        "latency": "seconds until the result is there", "throughput": "seconds from one result to the next",
        "energy": "joules per request", "quality": "what smaller denoisers lose",
    }  # fmt: skip

    def known(text: str) -> None:
        if text not in entries:
            raise ValueError(f"one of {', '.join(entries)}")

    return _typed("What matters most?", entries, known, "latency")


def _whole(text: str) -> None:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a whole number above 0")


def _typed(question: str, entries: Mapping[str, str], read: Callable[[str], Any], default: str | None = None) -> str:
    """Ask until ``read`` takes the answer; an empty one is the default. Entries, with what they are, complete it."""

    def valid(text: str) -> bool | str:
        if not text.strip():
            return default is not None or f"a name, as in {next(iter(entries))}"
        try:
            read(text.strip())
        except InputError as error:
            return "; ".join(f"{one.message}; {one.mend}" for one in error.findings)
        except ValueError as error:
            return "; ".join(map(str, error.args))
        return True

    if default:
        question = f"{question} (Enter: {default})"
    if entries:
        asked = questionary.autocomplete(
            question, list(entries), meta_information=dict(entries), match_middle=True, validate=valid
        )
    else:
        asked = questionary.text(question, validate=valid)
    return asked.unsafe_ask().strip() or default or ""
