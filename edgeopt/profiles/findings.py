"""What pydantic found, in words: every error with its field, file and line, and how to mend it."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from edgeopt.profiles.library import nearest
from edgeopt.profiles.reader import FieldPath, Flaw
from edgeopt.units import Quantity

__all__ = ["field_types", "known_keys", "translate"]

_KINDS = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}
_WANTED = {
    "model_type": "a mapping is needed",
    "model_attributes_type": "a mapping is needed",
    "dict_type": "a mapping is needed",
    "list_type": "a list is needed",
    "tuple_type": "a list is needed",
    "string_type": "text is needed",
}


def translate(error: ValidationError, model: type[BaseModel], data: Any) -> Iterator[Flaw]:
    """Yield each error as a flaw of the data.

    Parameters
    ----------
    error
        What pydantic raised.
    model
        The class that was validated.
    data
        What was validated, to find values and the place of missing ones.
    """
    flaws: dict[Flaw, None] = {}
    misspelled: set[FieldPath] = set()
    for one in error.errors(include_url=False):
        path = _path_in(data, one["loc"], keep_last=one["type"] == "missing")
        tag = str((one.get("ctx") or {}).get("discriminator", "")).strip("'")
        if one["type"] == "union_tag_invalid":
            path = (*path, tag)
        flaw = Flaw(path, *_words(one, path, model, data))
        if one["type"] == "extra_forbidden":
            misspelled |= {(*path[:-1], key) for key in known_keys(model, path[:-1], data) if f"'{key}'" in flaw.mend}
        flaws[flaw] = None
    for flaw in flaws:
        # "memry is unknown, did you mean memory?" says already that memory is missing.
        if not (flaw.message == "is missing" and flaw.path in misspelled):
            yield flaw


def _words(one: Mapping[str, Any], path: FieldPath, model: type[BaseModel], data: Any) -> tuple[str, str]:
    kind, context, value = one["type"], one.get("ctx") or {}, one["input"]
    if "mend" in context:
        return context["message"], context["mend"]
    if kind == "missing" and isinstance(path[-1], int):
        return f"has {path[-1]} entries", "give one more"
    if kind == "missing":
        return "is missing", _add(path, model, data)
    if kind == "extra_forbidden":
        known = known_keys(model, path[:-1], data)
        near = nearest(str(path[-1]), known)
        return f"unknown key '{path[-1]}'", f"did you mean {near}?" if near else f"known keys: {', '.join(known)}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tag = str(context.get("discriminator", "'kind'")).strip("'")
        choices = str(context.get("expected_tags", ""))
        message = f"'{value.get(tag)}' is unknown" if kind == "union_tag_invalid" else f"'{tag}' is missing"
        return message, f"write `{tag}:` with one of {choices}" if choices else f"add `{tag}:`"
    if kind in ("literal_error", "enum"):
        choices = [part.strip("' ") for part in context["expected"].replace(" or ", ", ").split(",")]
        near = nearest(str(value), choices)
        return f"{_brief(value)} is not known", (
            f"did you mean {near}? " if near else ""
        ) + f"known: {', '.join(choices)}"
    if kind == "string_pattern_mismatch":
        return (
            f"{_brief(value)} is not a name",
            "use letters, digits, '.', '_' and '-', and begin with a letter or digit",
        )
    if kind == "string_too_short":
        what = f"'{value.strip()}' is no source" if value.strip() else "is empty"
        return what, "say where the number comes from: a datasheet, a paper's table, a measurement, or assumed"
    if kind == "too_short":
        what = "is empty" if not value else f"has {len(value)}"
        return what, f"at least {context['min_length']} needed"
    if kind == "too_long":
        return f"has {context['actual_length']} entries", f"at most {context['max_length']} fit"
    if kind in _WANTED:
        return f"{_brief(value)} is not right here", _WANTED[kind]
    if kind == "finite_number":
        return f"{value} is not finite", "write a finite number"
    return f"{_brief(value)} is not right here", _sentence(one["msg"])


def _sentence(text: str) -> str:
    text = text.removeprefix("Input should be ").removeprefix("a valid ")
    return f"it should be {text[0].lower()}{text[1:]}"


def _brief(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return _KINDS[type(value)]
    return "an empty value" if value is None else f"'{str(value)[:60]}'"


def _add(path: FieldPath, model: type[BaseModel], data: Any) -> str:
    """Say how a missing field is written, with an example for quantities."""
    annotation = _annotation_at(model, path, data)
    quantity = next((part for part in _metadata(annotation) if isinstance(part, Quantity)), None)
    key = path[-1] if path else ""
    return f"add `{key}: {quantity.examples[0]}`" if quantity else f"add `{key}:`"


def _path_in(data: Any, loc: tuple[str | int, ...], keep_last: bool) -> FieldPath:
    """Drop the parts of a pydantic location that are names of union members and not keys of the data."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        if (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            data = data[part]
        elif not (keep_last and position == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def known_keys(model: type[BaseModel], path: FieldPath, data: Any) -> list[str]:
    """Return the keys that the mapping at ``path`` may have."""
    keys: dict[str, None] = {}
    for member in _members(_annotation_at(model, path, data)):
        if isinstance(member, type) and issubclass(member, BaseModel) and _fits(member, _value_at(data, path)):
            keys |= dict.fromkeys(field.alias or name for name, field in member.model_fields.items())
    return list(keys)


def field_types(model: type[BaseModel], path: FieldPath, data: Any) -> list[Any]:
    """Return the types that the value at ``path`` may have, without what annotates them."""
    return _members(_annotation_at(model, path, data))


def _value_at(data: Any, path: FieldPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _fits(member: type[BaseModel], data: Any) -> bool:
    """Whether a mapping can be of this class, judged by its fields with a fixed value (family, form)."""
    if not isinstance(data, dict):
        return True
    for name, field in member.model_fields.items():
        allowed = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
        if allowed and len(allowed) == 1 and data.get(name, allowed[0]) not in allowed:
            return False
    return True


def _annotation_at(model: Any, path: FieldPath, data: Any) -> Any:
    """Walk the annotations along a path; ``None`` where they end (free-form configuration)."""
    annotation = model
    for part in path:
        annotation = _step(annotation, part, data)
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            data = None
    return annotation


def _step(annotation: Any, part: str | int, data: Any) -> Any:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            for name, field in member.model_fields.items():
                if part in (name, field.alias) and _fits(member, data):
                    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        elif isinstance(part, int) and get_origin(member) in (list, tuple):
            return get_args(member)[0]
        elif isinstance(part, str) and get_origin(member) is dict:
            return get_args(member)[1]
    return None


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _metadata(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return [*get_args(annotation)[1:], *_metadata(get_args(annotation)[0])]
    if get_origin(annotation) in (Union, types.UnionType):
        return [item for part in get_args(annotation) for item in _metadata(part)]
    return []
