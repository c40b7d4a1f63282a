"""Text of a small grammar: three language models of one tokenizer, so that drafting and verifying mean something.

``make train-text`` trains everything anew on one core from fixed seeds; the manifest beside the checkpoints says from
which seeds and versions they come.
"""

from __future__ import annotations

from edgeopt.training.text.checkpoints import DATA_FOLDER, text_folder
from edgeopt.training.text.grammar import ALPHABET, decode, encode
from edgeopt.training.text.models import MODELS, TARGET, Recipe

__all__ = ["ALPHABET", "DATA_FOLDER", "MODELS", "TARGET", "Recipe", "decode", "encode", "text_folder"]
