"""What instances of every family share: one JSON document, and equality by content."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Self

import numpy as np

from edgeopt_solvers.errors import InstanceError

__all__ = ["JsonInstance", "WeightedInstance"]


class JsonInstance:
    """Base of an instance dataclass (``eq=False``): fields that are numbers, text, arrays, mappings or ``None``.

    A family with several problems names each of them in ``problem``.
    """

    family: ClassVar[str]
    problem: ClassVar[str | None] = None

    def to_json(self) -> str:
        """Return the instance as one JSON document; ``inf`` is written ``"inf"``."""
        return json.dumps({**_names(type(self)), **self._content()}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        InstanceError
            Not a JSON object of this family, an unknown or missing field, or a value that the class refuses.
        """
        return cls(**cls._decoded(_read_fields(cls, text)))  # numpy reads "inf" as a float

    @classmethod
    def _decoded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Undo what JSON cannot say; families with such fields override it."""
        return content

    def _content(self) -> dict[str, Any]:
        return {
            field.name: _jsonable(value)
            for field in fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
            if (value := getattr(self, field.name)) is not None or field.default is not None
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self.to_json())


class WeightedInstance(JsonInstance):
    """Base of an instance whose ``objective`` is a name, or a mapping of names to weights >= 0."""

    objective: str | Mapping[str, float]

    @property
    def weights(self) -> dict[str, float]:
        """Objective name → positive weight; a single name has weight 1."""
        if isinstance(self.objective, str):
            return {self.objective: 1.0}
        return {name: weight for name, weight in self.objective.items() if weight > 0}


def _read_fields(cls: Any, text: str) -> dict[str, Any]:
    """Return the fields in a JSON document of an instance of ``cls``, a dataclass with ``family``.

    Raises
    ------
    InstanceError
        Not a JSON object of this family (and problem), or an unknown or missing field.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InstanceError(f"no JSON document: {error}") from None
    names = _names(cls)
    if not isinstance(content, dict) or {name: content.pop(name, None) for name in names} != names:
        wanted = ", ".join(f'"{name}": "{value}"' for name, value in names.items())
        raise InstanceError(f"expected a JSON object with {wanted}")
    known = [field.name for field in fields(cls)]
    for name in content:
        if name not in known:
            raise InstanceError(f"unknown field {name!r}; known fields: {', '.join(known)}")
    required = [field.name for field in fields(cls) if field.default is MISSING]
    missing = [name for name in required if name not in content]
    if missing:
        raise InstanceError(f"missing field {missing[0]!r}; give {', '.join(required)}")
    return content


def _names(cls: Any) -> dict[str, str]:
    problem = getattr(cls, "problem", None)
    return {"family": cls.family} if problem is None else {"family": cls.family, "problem": problem}


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return "inf" if isinstance(value, float) and value == math.inf else value
