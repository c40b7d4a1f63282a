"""The published models whose configurations come with edgeopt: `facts.yaml`, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from edgeopt.profiler.architectures.family import Family
from edgeopt.profiles.model import Architecture, Sampler
from edgeopt.profiles.reader import read_document

__all__ = ["FACTS", "known_family", "known_language_model", "known_names"]

FACTS = Path(__file__).with_name("facts.yaml")


@cache
def _facts() -> Mapping[str, Mapping[str, Any]]:
    return read_document(FACTS).data


def known_names() -> list[str]:
    """Names of all models in the table."""
    facts = _facts()
    return [*facts["language"], *facts["diffusion"]]


def known_language_model(name: str) -> tuple[Architecture, dict[str, str]] | None:
    """Return a language model's architecture, its source and description; ``None`` where there is none of the name."""
    fact = _facts()["language"].get(name)
    if fact is None:
        return None
    architecture = Architecture(library="transformers", class_name=fact["class"], config=fact["config"])
    return architecture, {"source": fact["source"], "description": fact["description"]}


def known_family(name: str) -> tuple[Family, dict[str, str]] | None:
    """Return a family of denoisers, its source and description; ``None`` where there is none of the name."""
    facts = _facts()
    fact = facts["diffusion"].get(name)
    if fact is None:
        return None
    encoders, variants = fact.get("text_encoders", {}), fact["variants"]
    decoder = fact.get("decoder")
    family = Family(
        latent_shape=fact["latent_shape"],
        sampler=Sampler.model_validate(fact["sampler"]),
        variants={label: _part(part) for label, part in variants.items()},
        dtype=fact["dtype"],
        text_encoders={part: (_part(part), tokens) for part, tokens in encoders.items()},
        decoder=_part(decoder) if decoder else None,
        conditioning_bytes=fact.get("conditioning_bytes"),
        sources={**_part_sources(encoders, variants, decoder), **fact.get("sources", {})},
        quality=fact.get("quality"),
    )
    published = [fact["source"]] if "source" in fact else []
    return family, {
        "source": "; ".join(["configurations as under sources", *published]),
        "description": fact["description"],
    }


def _part(name: str) -> Architecture:
    fact = _facts()["components"][name]
    return Architecture(library=fact["library"], class_name=fact["class"], config=fact["config"])


def _part_sources(encoders: Mapping[str, int], variants: Mapping[str, str], decoder: str | None) -> dict[str, str]:
    one = len(encoders) == 1
    fields = {("text_encoder" if one else f"text_encoder.parts.{part}"): part for part in encoders}
    fields |= {f"variants.{label}": part for label, part in variants.items()}
    fields |= {"decoder": decoder} if decoder else {}
    return {f"{field}.architecture": _facts()["components"][part]["source"] for field, part in fields.items()}
