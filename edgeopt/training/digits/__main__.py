"""Train the family on one core, measure it, and write its profile."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeopt.files import write_whole
from edgeopt.profiler.architectures import model_text
from edgeopt.profiler.quality import profile_quality
from edgeopt.profiler.quality.stale import stale_quality
from edgeopt.profiles.checkpoints import with_relative_checkpoints
from edgeopt.training.digits.checkpoints import train_all
from edgeopt.training.digits.data import data_folder, pack_csv
from edgeopt.training.digits.profile import digits_model

__all__ = ["main"]


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(prog="python -m edgeopt.training.digits", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the checkpoints; default: the library's")
    parser.add_argument("--only", action="append", metavar="NAME", help="train only this one; repeatable")
    parser.add_argument("--csv", type=Path, help="take the data from scikit-learn's digits.csv.gz first")
    parser.add_argument("--profile", type=Path, help="model profile to write, with its quality measured")
    arguments = parser.parse_args()
    out = arguments.out or data_folder()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.csv:
        pack_csv(arguments.csv, out)
    train_all(out, arguments.only)
    if arguments.profile:
        measured = profile_quality(digits_model(out), progress=print)
        measured = measured.model_copy(update={"stale": stale_quality(measured, progress=print)})
        model = with_relative_checkpoints(measured, arguments.profile.parent)
        write_whole(arguments.profile, model_text(model))


if __name__ == "__main__":
    main()
