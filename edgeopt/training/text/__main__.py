"""Train the family on one core, measure what is taken of drafts and what all models answer, and write its profile."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeopt.files import write_whole
from edgeopt.profiler.architectures import model_text
from edgeopt.training.text.checkpoints import text_folder, train_all
from edgeopt.training.text.models import MODELS
from edgeopt.training.text.profile import text_model

__all__ = ["main"]


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(prog="python -m edgeopt.training.text", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the checkpoints; default: the library's")
    parser.add_argument("--only", action="append", choices=list(MODELS), help="train only this one; repeatable")
    parser.add_argument("--measure-only", action="store_true", help="train nothing, write the profile anew")
    parser.add_argument("--profile", type=Path, help="model profile to write, beside the folder of data")
    arguments = parser.parse_args()
    out = arguments.out or text_folder()
    out.mkdir(parents=True, exist_ok=True)
    if not arguments.measure_only:
        train_all(out, arguments.only)
    if arguments.profile:
        write_whole(arguments.profile, model_text(text_model(out)))


if __name__ == "__main__":
    main()
