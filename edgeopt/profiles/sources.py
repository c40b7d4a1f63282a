"""Where the numbers of a profile come from: every number has a source, and every entry of ``sources`` a number.

``source`` covers all numbers of a file; an entry of ``sources`` speaks for a field and all below it instead. Its key
is the field's path as messages write it (``power.idle``, ``links[0].rate``); ``*`` stands for any key or item, and an
item of a list may be called by its ``name`` (``layers.head.output_per_token``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from edgeopt.profiles.library import nearest
from edgeopt.profiles.reader import FieldPath, Flaw, field_name

__all__ = ["Sourced", "check_sources", "covered", "provenance"]

#: Not figures of the profile: words, what has a source of its own, and configurations, which are a model's identity.
_NO_FIGURES = frozenset(
    ("name", "description", "source", "sources", "kind", "architecture", "sampler", "quality", "timings", "runtime",
     "calibration", "latent_shape", "count", "fit")
)  # fmt: skip
#: Entries with a ``source`` of their own.
_SOURCED_INSIDE = ("quality", "timings")
_ORIGINS = ("source", "sources")
#: Numbers without a source that are named one by one; models have hundreds.
_NAMED = 8


class Sourced(NamedTuple):
    """A number of a profile, or a list of them, and where it comes from; the place is written as messages write it."""

    place: str
    value: Any
    source: str


def provenance(data: Mapping[str, Any], at: FieldPath = ()) -> Iterator[Sourced]:
    """Yield every number of a profile in plain data with its source, that of what is measured inside it included.

    An entry of ``sources`` for the number itself, or for the nearest mapping around it, comes before ``source``.
    """
    entries = {path: text for key, text in (data.get("sources") or {}).items() for path in covered(data, str(key))}
    entries[()] = str(data.get("source", ""))
    for path, value in _figures(data, ()):
        source = next(entries[path[:n]] for n in range(len(path), -1, -1) if path[:n] in entries)
        yield Sourced(field_name((*at, *path)), value, source)
    for part in _SOURCED_INSIDE:
        found = data.get(part)
        for index, item in enumerate(found) if isinstance(found, list) else [(None, found)]:
            if isinstance(item, dict):
                yield from provenance(item, (*at, part) if index is None else (*at, part, index))


def check_sources(data: Mapping[str, Any]) -> Iterator[Flaw]:
    """Yield entries of ``sources`` that speak for nothing and, in a file without ``source``, numbers that have none."""
    entries = data.get("sources", {})
    if not isinstance(entries, dict):
        return
    spoken_for: set[FieldPath] = set()
    for key in entries:
        places = set(covered(data, str(key)))
        spoken_for |= places
        if not places:
            near = nearest(str(key), [name for name in _names(data) if name not in entries])
            mend = f"did you mean {near}?" if near else "name a field of this file, or remove it"
            yield Flaw(("sources", key), "there is no such number in this file", mend)
    if "source" not in data:
        bare = [path for path in _numbers(data, ()) if not any(path[:n] in spoken_for for n in range(len(path) + 1))]
        for path in bare[:_NAMED]:
            mend = f"add `sources: {{{field_name(path)}: …}}`, or `source:` for the whole file"
            yield Flaw(path, "has no source", mend)
        if len(bare) > _NAMED:
            yield Flaw((), f"{len(bare) - _NAMED} more numbers have no source", "add `source:` for the whole file")


def covered(data: Any, key: str) -> Iterator[FieldPath]:
    """Yield the places in plain data that a key of ``sources`` speaks for; keys of mappings may hold dots."""
    for part, item in _items(data):
        names = {str(part), "*", *([f"[{part}]", "[*]"] if isinstance(part, int) else [])}
        if isinstance(part, int) and isinstance(item, dict) and isinstance(item.get("name"), str):
            names.add(item["name"])
        for name in names:
            if key == name:
                yield (part,)
            elif key.startswith((f"{name}.", f"{name}[")):
                yield from ((part, *rest) for rest in covered(item, key[len(name) :].removeprefix(".")))


def _items(data: Any) -> Sequence[tuple[str | int, Any]]:
    """Entries of a mapping or a list that say something."""
    if isinstance(data, dict):
        return [(key, value) for key, value in data.items() if value not in (None, [], {}) and key not in _ORIGINS]
    return list(enumerate(data)) if isinstance(data, list) else []


def _numbers(data: Any, at: FieldPath) -> Iterator[FieldPath]:
    """Yield the places of the profile's own numbers, which are written as numbers or begin with one."""
    for part, item in _items(data):
        if part in _NO_FIGURES:
            continue
        if _is_number(item):
            yield (*at, part)
        else:
            yield from _numbers(item, (*at, part))


def _figures(data: Any, at: FieldPath) -> Iterator[tuple[FieldPath, Any]]:
    """Yield places and values of numbers, lists of nothing but numbers whole."""
    for part, item in _items(data):
        if part in _NO_FIGURES:
            continue
        if _is_number(item) or (isinstance(item, list) and all(map(_is_number, item))):
            yield (*at, part), item
        else:
            yield from _figures(item, (*at, part))


def _is_number(item: Any) -> bool:
    text = item.lstrip("+-.") if isinstance(item, str) else ""
    return (isinstance(item, (int, float)) and not isinstance(item, bool)) or text[:1].isdigit()


def _names(data: Mapping[str, Any]) -> list[str]:
    return [".".join(str(part) for part in path) for path in _numbers(data, ())] + [str(key) for key in data]
