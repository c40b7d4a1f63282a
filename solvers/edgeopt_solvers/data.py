"""What instances of every family share: one JSON document, and equality by content."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Self

import numpy as np

from edgeopt_solvers.errors import InstanceError

__all__ = ["JsonInstance"]


class JsonInstance:
    """Base of an instance dataclass (``eq=False``): fields that are numbers, text, arrays, mappings or ``None``."""

    family: ClassVar[str]

    def to_json(self) -> str:
        """Return the instance as one JSON document; ``inf`` is written ``"inf"``."""
        return json.dumps({"family": self.family, **self._content()}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        InstanceError
            Not a JSON object of this family, an unknown or missing field, or a value that the class refuses.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InstanceError(f"no JSON document: {error}") from None
        if not isinstance(content, dict) or content.pop("family", None) != cls.family:
            raise InstanceError(f'expected a JSON object with "family": "{cls.family}"')
        declared = fields(cls)  # type: ignore[arg-type]  # every subclass is a dataclass
        known = [field.name for field in declared]
        for name in content:
            if name not in known:
                raise InstanceError(f"unknown field {name!r}; known fields: {', '.join(known)}")
        required = [field.name for field in declared if field.default is MISSING]
        missing = [name for name in required if name not in content]
        if missing:
            raise InstanceError(f"missing field {missing[0]!r}; give {', '.join(required)}")
        return cls(**cls._decoded(content))  # numpy reads "inf" as a float

    @classmethod
    def _decoded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Undo what JSON cannot say; families with such fields override it."""
        return content

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = _jsonable(value.tolist())
            elif isinstance(value, Mapping):
                value = dict(value)
            elif isinstance(value, tuple):
                value = list(value)
            if value is not None or field.default is not None:
                content[field.name] = value
        return content

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self.to_json())


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return "inf" if value == math.inf else value
