"""Model profiles from real architectures: built on torch's meta device from configurations, without weights.

``derive_model`` takes a published model's name, a ``config.json`` (of transformers or diffusers), or the folder of a
diffusers pipeline, runs it on tensors without memory, and counts. What is counted and how: :mod:`.trace`.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from edgeopt.errors import Finding, InputError
from edgeopt.profiler.architectures.building import architecture_of, versions
from edgeopt.profiler.architectures.configs import family_of, pipeline_family, read_config
from edgeopt.profiler.architectures.facts import known_family, known_language_model, known_names
from edgeopt.profiler.architectures.family import diffusion
from edgeopt.profiler.architectures.language import causal_lm, with_weights
from edgeopt.profiles import dump_yaml
from edgeopt.profiles.library import nearest
from edgeopt.profiles.model import CausalLM, Diffusion

__all__ = ["derive_model", "known_names", "model_text", "with_weights"]

_SCHEMA = "# yaml-language-server: $schema=../schema/model.json\n"


def derive_model(
    config: str | Path | dict[str, Any],
    *,
    name: str | None = None,
    source: str | None = None,
    dtype: str | None = None,
    description: str | None = None,
    weights: str | None = None,
    counted_on: date | None = None,
) -> CausalLM | Diffusion:
    """Derive a model profile without weights.

    Parameters
    ----------
    config
        The name of a published model (:func:`known_names`), the path of a ``config.json`` or of a folder that holds
        one or a ``model_index.json``, or a configuration itself.
    name, source, description
        Of the profile. A name and a source are needed for a configuration that is no file.
    dtype
        Of weights and activations; default: what the configuration says, else bfloat16 for language models and
        float16 for diffusion.
    weights
        ``int8`` or ``int4``: the matrices of a language model's blocks are stored so.
    counted_on
        Date for the source; default: today.

    Raises
    ------
    InputError
        Nothing known by this name, no such file, or a model that cannot be counted; says what to do.
    MissingDependencyError
        torch, transformers or diffusers is not installed.
    """
    model = _derive(config, name, source, dtype, description)
    counted = f"counted on torch's meta device on {(counted_on or date.today()).isoformat()} with {versions()}"
    model = model.model_copy(update={"source": f"{model.source}; {counted}"})
    if weights is None:
        return model
    if not isinstance(model, CausalLM):
        raise InputError(Finding("weights", f"'{model.name}' is no language model", "leave `weights` out"))
    return with_weights(model, weights)


def _derive(
    config: str | Path | dict[str, Any],
    name: str | None,
    source: str | None,
    dtype: str | None,
    description: str | None,
) -> CausalLM | Diffusion:
    if isinstance(config, str) and not Path(config).exists():
        return _known(config, name, source, dtype, description)
    about: dict[str, str] = {"description": description or ""}
    if isinstance(config, dict):
        if name is None or source is None:
            raise InputError(
                Finding("source", "a configuration that is no file needs a name and a source", "give both")
            )
        about |= {"name": name, "source": source}
        content = config
    else:
        path = Path(config)
        about |= {"name": name or _name_of(path), "source": source or f"configuration in {path.name or path}"}
        if (path / "model_index.json").is_file():
            return diffusion(pipeline_family(path, dtype or "float16"), **about)
        content = read_config(path)
    architecture = architecture_of(content)
    if architecture.library == "diffusers":
        return diffusion(family_of(architecture, dtype or "float16"), **about)
    stored = content.get("dtype", content.get("torch_dtype"))
    return causal_lm(architecture, dtype=dtype or (stored if stored in _STORED else "bfloat16"), **about)


_STORED = ("float32", "float16", "bfloat16")


def _name_of(path: Path) -> str:
    """Name a profile after the folder of a configuration, or after its file where that has a name of its own."""
    path = path.resolve()
    return path.parent.name if path.name == "config.json" else path.stem if path.is_file() else path.name


def _known(
    ref: str, name: str | None, source: str | None, dtype: str | None, description: str | None
) -> CausalLM | Diffusion:
    language, family = known_language_model(ref), known_family(ref)
    if language is None and family is None:
        near = nearest(ref, known_names())
        mend = f"did you mean {near}?" if near else f"known: {', '.join(known_names())}; or give a config.json"
        raise InputError(Finding("config", f"there is no file and no published model '{ref}'", mend))
    kind, about = language or family
    about = {
        "name": name or ref,
        "source": source or about["source"],
        "description": about["description"] if description is None else description,
    }
    if language is not None:
        return causal_lm(kind, dtype=dtype or "bfloat16", **about)
    if dtype is not None:
        from dataclasses import replace

        kind = replace(kind, dtype=dtype)
    return diffusion(kind, **about)


def model_text(model: CausalLM | Diffusion) -> str:
    """Return a model profile as the library's files are written."""
    return _SCHEMA + dump_yaml(model)
