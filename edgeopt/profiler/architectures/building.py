"""Modules of `transformers` and `diffusers` from their configurations, on the meta device: no weights, no memory."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgeopt.errors import Finding, InputError, MissingDependencyError
from edgeopt.profiles.model import Architecture

__all__ = ["architecture_of", "build_module", "library_module", "plain_config", "versions"]

#: Keys of a configuration file that say where it comes from, not what the model is.
_PROVENANCE = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "model_type", "auto_map")


def library_module(name: str) -> Any:
    """Import ``transformers`` or ``diffusers``.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    import importlib

    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(name, "models", "deriving a model from its configuration") from error
    if name == "transformers":
        module.logging.set_verbosity_error()
    return module


def versions() -> str:
    """Return the versions that counted, for a profile's source."""
    from importlib.metadata import version

    names = ("torch", "transformers", "diffusers")
    return ", ".join(f"{name} {version(name).split('+')[0]}" for name in names)


def architecture_of(config: dict[str, Any]) -> Architecture:
    """Return library, class and plain configuration of a ``config.json``.

    Raises
    ------
    InputError
        It names no class, or one that the installed library does not have.
    """
    if "_class_name" in config:
        library, class_name = "diffusers", config["_class_name"]
    elif config.get("architectures"):
        library, class_name = "transformers", config["architectures"][0]
    elif "model_type" in config:
        library, class_name = "transformers", _causal_class(config["model_type"])
    else:
        mend = (
            "give the config.json of a transformers or diffusers model (`architectures`, `model_type` or `_class_name`)"
        )
        raise InputError(Finding("config", "names no model class", mend))
    cls = getattr(library_module(library), class_name, None)
    if not isinstance(cls, type):
        raise InputError(Finding("config", f"{library} has no class '{class_name}'", "install a version that has it"))
    return Architecture(library=library, class_name=class_name, config=plain_config(config, _defaults(cls, library)))


def _causal_class(model_type: str) -> str:
    names = library_module("transformers").models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if model_type not in names:
        raise InputError(
            Finding(
                "config.model_type", f"'{model_type}' is no causal language model", "name the class in `architectures`"
            )
        )
    return names[model_type]


def plain_config(config: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what a configuration file says about itself, and what the class would take anyway (None: unset)."""
    return {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in _PROVENANCE and value != defaults.get(key)
    }


def _defaults(cls: Any, library: str) -> dict[str, Any]:
    """Return a diffusers class's defaults, which its configurations spell out; transformers' only spell what is set."""
    if library == "transformers":
        return {}
    return {name: p.default for name, p in inspect.signature(cls.__init__).parameters.items()}


def build_module(architecture: Architecture, dtype: torch.dtype, **overrides: Any) -> nn.Module:
    """Construct a module on the meta device.

    Parameters
    ----------
    dtype
        Of the parameters.
    overrides
        Attributes set on the configuration of a transformers class before building.

    Raises
    ------
    InputError
        The class refuses the configuration.
    """
    cls = getattr(library_module(architecture.library), architecture.class_name)
    try:
        with _default_dtype(dtype), torch.device("meta"):
            if architecture.library == "diffusers":
                return cls(**architecture.config).eval()
            config = cls.config_class(**architecture.config)
            for key, value in overrides.items():
                setattr(config, key, value)
            return cls(config).eval()
    except Exception as error:  # classes refuse configurations with errors of many kinds, their validators' too
        message = f"{architecture.class_name} cannot be built from this configuration: {error}"
        raise InputError(Finding("config", message, "compare it with the model's published config.json")) from error


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    # `.to(dtype)` after building does not work under every mode, so modules are born in their dtype.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
