"""Configurations on disk: one `config.json`, or the folder of a diffusers pipeline with its `model_index.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt.errors import Finding, InputError
from edgeopt.profiler.architectures.building import architecture_of, build_module, library_module
from edgeopt.profiler.architectures.calls import DENOISERS, denoiser_call
from edgeopt.profiler.architectures.family import Family
from edgeopt.profiles.model import Architecture, Sampler
from edgeopt.profiles.reader import read_document
from edgeopt.programs.weights import torch_dtype

__all__ = ["family_of", "pipeline_family", "read_config"]

_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")

#: Latent pixels along a side where the configuration says nothing: an image of 1024 x 1024.
_SIDE = 128

#: The solver assumed for a denoiser that stands alone.
_FLOW = ("SD3Transformer2DModel", "FluxTransformer2DModel")


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one configuration.

    Raises
    ------
    InputError
        No such file, or not a JSON mapping.
    """
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            Finding("config", f"there is no file '{file}'", "name a config.json, or the folder that holds it")
        )
    return read_document(file).data


def family_of(architecture: Architecture, dtype: str, *, decoder: Architecture | None = None, **more: Any) -> Family:
    """Return a family of one denoiser; latent size and solver from its configuration or the usual ones of its class."""
    kind = denoiser_call(architecture.class_name)
    config: Any = build_module(architecture, torch_dtype(dtype)).config
    side = getattr(config, "sample_size", None) or _SIDE
    sides = [side, side] if isinstance(side, int) else list(side)
    flow = architecture.class_name in _FLOW
    assumed = {
        "sampler": Sampler(class_name="FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler"),
        "sources": {"sampler": "assumed: usual for this class"},
    }
    return Family(
        latent_shape=[kind.channels(config), *sides],
        variants={"denoiser": architecture},
        dtype=dtype,
        decoder=decoder,
        **({} if "sampler" in more else assumed),
        **more,
    )


def pipeline_family(folder: Path, dtype: str) -> Family:
    """Return the family of a pipeline folder; parts whose weights lie in it are loaded from there.

    Raises
    ------
    InputError
        It holds no denoiser of a known class.
    """
    index = read_document(folder / "model_index.json").data
    parts = {
        name: _with_weights(architecture_of({**read_config(folder / name), **_named(entry)}), folder / name)
        for name, entry in index.items()
        if isinstance(entry, list)
        and entry[0] in ("transformers", "diffusers")
        and (folder / name / "config.json").is_file()
    }
    found = [part for part in parts.values() if part.class_name in DENOISERS]
    if not found:
        raise InputError(
            Finding("config", f"no denoiser of a known class in '{folder}'", f"known: {', '.join(DENOISERS)}")
        )
    tokens = denoiser_call(found[0].class_name).tokens
    encoders = {name: (parts[name], _length(parts[name], tokens)) for name in _ENCODERS if name in parts}
    more: dict[str, Any] = {"text_encoders": encoders}
    schedule = folder / "scheduler" / "scheduler_config.json"
    if schedule.is_file():
        config = read_document(schedule).data
        plain = {key: value for key, value in config.items() if not key.startswith("_")}
        more["sampler"] = Sampler(class_name=config["_class_name"], config=plain)
    decoder = parts.get("vae")
    return family_of(found[0], dtype, decoder=decoder, **more)


def _with_weights(architecture: Architecture, folder: Path) -> Architecture:
    """Name the folder as checkpoint where it holds safetensors."""
    if not any(folder.glob("*.safetensors")):
        return architecture
    return architecture.model_copy(update={"checkpoint": str(folder.absolute())})


def _named(entry: list[str]) -> dict[str, Any]:
    """Class as the index names it: a text encoder's own configuration may name another class of its family."""
    library, name = entry
    library_module(library)
    return {"_class_name": name} if library == "diffusers" else {"architectures": [name]}


def _length(encoder: Architecture, tokens: int) -> int:
    """Tokens of an encoder's prompts: CLIP's positions, or what is left of the conditioning for T5."""
    positions = encoder.config.get("max_position_embeddings", 77)
    if encoder.class_name.startswith("CLIP"):
        return positions
    return tokens - positions if tokens == 77 + 256 else tokens
