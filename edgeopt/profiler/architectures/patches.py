"""What patches of a denoiser exchange: counted by running two equal slabs' upper one on torch's meta device."""

from __future__ import annotations

import torch

from edgeopt.errors import InputError
from edgeopt.profiler.architectures.building import build_module
from edgeopt.profiler.architectures.calls import denoiser_call
from edgeopt.profiles.model import Architecture, PatchExchange
from edgeopt.programs.denoisers import DENOISERS
from edgeopt.programs.slabs import Recorder, cut_into_slabs, row_multiple
from edgeopt.programs.weights import torch_dtype

__all__ = ["patch_exchange"]


def patch_exchange(
    architecture: Architecture, latent_shape: list[int], tokens: int, dtype: str
) -> PatchExchange | None:
    """Count bytes and messages of one step of one image; ``None`` for a denoiser that is not known to be cut so.

    Parameters
    ----------
    tokens
        Of the text conditioning; not used with class labels.
    """
    if architecture.class_name not in DENOISERS or len(latent_shape) != 3:
        return None
    multiple, rows = row_multiple(architecture.config), latent_shape[1]
    half = rows // multiple // 2 * multiple
    if rows % multiple or not half:
        return None
    module = build_module(architecture, torch_dtype(dtype))
    recorder = Recorder(half, rows - half)
    try:
        cut_into_slabs(module, recorder)
    except InputError:
        return None
    shape = [latent_shape[0], half, latent_shape[2]]
    call = denoiser_call(architecture.class_name).call(module.config, shape, tokens, torch_dtype(dtype))
    with torch.inference_mode():
        module(**call.arguments())
    messages, num_bytes = recorder.messages, recorder.num_bytes
    return PatchExchange(
        multiple=multiple,
        messages=sum(messages.values()),
        halo_messages=messages["halo"],
        per_row=num_bytes["context"] / half,
        halo=float(num_bytes["halo"]),
        sums=float(num_bytes["sums"]),
    )
