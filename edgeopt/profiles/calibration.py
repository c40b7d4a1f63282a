"""Calibration: which runs corrected a profile's numbers, by how much, and what the correction is worth."""

from __future__ import annotations

import datetime

from pydantic import Field

from edgeopt.profiles.base import Strict

__all__ = ["Calibration", "CalibrationReport", "Correction", "Residual"]


class CalibrationReport(Strict):
    """A report that was fitted: SHA-256 of the file, digest of the plan that it ran, and when."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    plan_digest: str
    date: datetime.datetime
    emulated: bool


class Correction(Strict):
    """A number of the profile before and after, in SI units."""

    field: str
    before: float
    after: float


class Residual(Strict):
    """One measured duration in seconds, and how far the prediction was off: (predicted - measured) / measured."""

    what: str
    measured_s: float
    before: float
    after: float


class Calibration(Strict):
    """Where a calibrated profile comes from."""

    base: str
    date: datetime.date
    hardware: str
    reports: list[CalibrationReport] = Field(min_length=1)
    corrections: list[Correction]
    residuals: list[Residual]
