"""Devices, models, networks and problems: what their files say, where they are found, and how they are checked."""

from __future__ import annotations

from edgeopt.profiles.library import list_profiles
from edgeopt.profiles.loader import load, load_device, load_model, load_network, load_problem, validate
from edgeopt.profiles.plans import dump_plan, dump_yaml, load_plan, save_plan
from edgeopt.profiles.schema import json_schema

__all__ = [
    "dump_plan", "dump_yaml", "json_schema", "list_profiles", "load", "load_device", "load_model", "load_network",
    "load_plan", "load_problem", "save_plan", "validate",
]  # fmt: skip
