"""Train the denoisers on one core, measure them, and write their profiles."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeopt.files import write_whole
from edgeopt.profiler.architectures import model_text
from edgeopt.profiler.quality import profile_cascade, profile_quality
from edgeopt.profiler.quality.stale import stale_quality
from edgeopt.profiles.checkpoints import with_relative_checkpoints
from edgeopt.profiles.model import CascadedDiffusion, Diffusion
from edgeopt.training.digits.checkpoints import train_all
from edgeopt.training.digits.data import data_folder, pack_csv
from edgeopt.training.digits.profile import LEVEL_STEPS, digits_16_model, digits_levels_model, digits_model

__all__ = ["main"]


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(prog="python -m edgeopt.training.digits", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the checkpoints; default: the library's")
    parser.add_argument("--only", action="append", metavar="NAME", help="train only this one; repeatable")
    parser.add_argument("--no-train", action="store_true", help="measure the checkpoints that are there")
    parser.add_argument("--csv", type=Path, help="take the data from scikit-learn's digits.csv.gz first")
    parser.add_argument("--profiles", type=Path, help="folder for the model profiles, with their quality measured")
    parser.add_argument("--measure", action="append", metavar="MODEL", help="write only this profile; repeatable")
    arguments = parser.parse_args()
    out = arguments.out or data_folder()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.csv:
        pack_csv(arguments.csv, out)
    if not arguments.no_train:
        train_all(out, arguments.only)
    if arguments.profiles:
        for model in (digits_model(out), digits_16_model(out), digits_levels_model(out)):
            if model.name in (arguments.measure or [model.name]):
                measured = with_relative_checkpoints(_measured(model), arguments.profiles)
                write_whole(arguments.profiles / f"{model.name}.yaml", model_text(measured))


def _measured(model: Diffusion | CascadedDiffusion) -> Diffusion | CascadedDiffusion:
    """Return a model with its quality: of runs through levels, of mixtures, or of its only denoiser."""
    if isinstance(model, CascadedDiffusion):
        return profile_cascade(model, LEVEL_STEPS, progress=print)
    measured = profile_quality(model, form="additive" if len(model.variants) > 1 else "whole", progress=print)
    if len(model.variants) == 1:
        return measured
    return measured.model_copy(update={"stale": stale_quality(measured, progress=print)})


if __name__ == "__main__":
    main()
