"""What a model's weights take together."""

from __future__ import annotations

from edgeopt.profiles.model import CascadedDiffusion, CausalLM, Model

__all__ = ["weights_bytes"]


def weights_bytes(model: Model) -> float:
    """Bytes of a model's weights; of the denoisers to choose among, the largest of each level counts."""
    if isinstance(model, CausalLM):
        return sum(layer.count * layer.weights for layer in model.layers)
    is_cascade = isinstance(model, CascadedDiffusion)
    families = [level.variants for level in model.levels] if is_cascade else [model.variants]
    parts = [model.text_encoder, None if is_cascade else model.decoder]
    needed = sum(part.weights for part in parts if part is not None)
    return needed + sum(max(variant.weights for variant in family.values()) for family in families)
