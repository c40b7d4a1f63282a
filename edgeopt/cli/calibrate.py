"""The verb that corrects profiles by executed plans: calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.common import Json, print_json

__all__ = ["calibrate"]


def calibrate(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="From `edgeopt execute -o`, JSON.")],
    plan: Annotated[list[Path], typer.Option(metavar="PLAN", help="A plan that was executed; repeatable.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where devices/ and networks/ are written.")
    ],
    json: Json = False,
) -> None:
    """Fit efficiency factors and links to executed reports, into new profiles; nothing is ever overwritten."""
    from datetime import date

    from edgeopt.cli.common import existing, write
    from edgeopt.errors import Finding, InputError
    from edgeopt.profiler.calibrate import calibrate as fit
    from edgeopt.profiler.runs import load_runs

    result = fit(load_runs(reports, [existing(path) for path in plan]), date.today())
    files = {output / "devices" / f"{device.name}.yaml": device for device in result.devices}
    files |= {output / "networks" / f"{network.name}.yaml": network for network in result.networks}
    taken = [path for path in files if path.exists()]
    if taken:
        mend = "choose another folder, or move it away"
        raise InputError([Finding("-o", f"'{path}' exists and is not overwritten", mend) for path in taken])
    for path, profile in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, profile)
    profiles = [profile for profile in files.values() if profile.calibration is not None]
    if json:
        calibrations = {one.name: one.calibration.model_dump(mode="json") for one in profiles if one.calibration}
        print_json({"files": [str(path) for path in files], "calibrations": calibrations, "notes": result.notes})
        return
    from edgeopt.report import tables

    for profile in profiles:
        assert profile.calibration is not None
        tables.show(*tables.calibration_view(profile.name, profile.calibration))
    for note in result.notes:
        print(f"note: {note}")
    print("\n".join(f"profile written to {path}" for path in files))
