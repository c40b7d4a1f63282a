"""Small models trained here, so that quality can be measured without downloading anything."""

from __future__ import annotations

__all__: list[str] = []
