"""JSON Schema of profile and problem files, by which editors complete and check them while one types."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import TypeAdapter

from edgeopt.profiles.device import Device
from edgeopt.profiles.library import plain_kind
from edgeopt.profiles.model import Model
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import Problem
from edgeopt.profiles.resolve import MAX_COUNT

__all__ = ["json_schema"]

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: str) -> Schema:
    """Return the JSON Schema (2020-12) of what a file of a kind may say.

    Parameters
    ----------
    kind
        ``device``, ``model``, ``network`` or ``problem``.

    Raises
    ------
    InputError
        No such kind.
    """
    kind = plain_kind(kind)
    types: dict[str, Any] = {"device": Device, "model": Model, "network": Network, "problem": Problem}
    schema = TypeAdapter(types[kind]).json_schema(by_alias=True)
    if kind == "problem":
        _open_problem(schema)
    return {"$schema": _DIALECT, "title": f"edgeopt {kind}", **_without_titles(schema)}


def _without_titles(schema: Any) -> Any:
    """Drop pydantic's titles, which repeat the key, and its OpenAPI words; names of properties are left alone."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            result[key] = {name: _without_titles(item) for name, item in value.items()}
        elif key not in ("title", "discriminator"):
            result[key] = value if key in ("default", "examples", "enum", "const") else _without_titles(value)
    return result


def _open_problem(schema: Schema) -> None:
    """Turn the schema of a resolved problem into that of a file: names, paths, changed and repeated devices."""
    defs, properties = schema["$defs"], schema["properties"]
    name = {"type": "string", "minLength": 1}
    models = ("CausalLM", "Diffusion", "CascadedDiffusion")
    for inline in ("Device", "Network", *models):
        defs[inline]["required"].remove("source")  # numbers in a problem file have that file as their source
    defs["Network"]["required"].remove("name")
    count = {"type": "integer", "minimum": 1, "maximum": MAX_COUNT, "description": "repeat it as name-1, name-2, …"}
    changed = _partial(defs, "Device")
    changed["properties"] |= {"profile": {**name, "description": "name of a device, or a path"}, "count": count}
    changed["required"] = ["profile"]
    changed["description"] = "A device of the library with changes, or several of it."
    defs["ChangedDevice"] = changed
    defs["Device"]["properties"]["count"] = count
    ref = {**name, "description": "a name of the library, or a path that ends in .yaml, .yml or .json"}
    devices = [ref, {"$ref": "#/$defs/ChangedDevice"}, {"$ref": "#/$defs/Device"}]
    properties["devices"] = {"type": "array", "minItems": 1, "items": {"anyOf": devices}}
    properties["network"] = {"anyOf": [ref, {"$ref": "#/$defs/Network"}]}
    properties["model"] = {"anyOf": [ref, *({"$ref": f"#/$defs/{inline}"} for inline in models)]}
    workloads = ("TextWorkload", "ImageWorkload", "CascadeWorkload")
    properties["workload"] = {"anyOf": [{"$ref": f"#/$defs/{workload}"} for workload in workloads]}


def _partial(defs: Schema, name: str) -> Schema:
    """Return a copy of a definition in which nothing is required, at any level."""
    partial = copy.deepcopy(defs[name])
    partial.pop("required", None)
    for one in _references(partial):
        target = one["$ref"].removeprefix("#/$defs/")
        if "properties" in defs[target] and target != "Timing":  # lists are replaced whole
            one["$ref"] = f"#/$defs/Changed{target}"
            if f"Changed{target}" not in defs:
                defs[f"Changed{target}"] = {}
                defs[f"Changed{target}"] = _partial(defs, target)
    return partial


def _references(schema: Any) -> list[Schema]:
    if isinstance(schema, list):
        return [found for item in schema for found in _references(item)]
    if not isinstance(schema, dict):
        return []
    here = [schema] if isinstance(schema.get("$ref"), str) else []
    return here + [found for item in schema.values() for found in _references(item)]
