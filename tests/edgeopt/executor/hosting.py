"""Hosts files for machines that are all this one, by the addresses of its loopback interface."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def hosts_file(folder: Path, *devices: str, **fields: Any) -> Path:
    """Device k of ``devices`` listens on 127.0.0.(k + 1); the first is the coordinator's machine."""
    entries = {name: {"address": f"127.0.0.{k + 1}", "python": sys.executable} for k, name in enumerate(devices)}
    content = {"coordinator": "127.0.0.1", "devices": entries, "torchrun_port": free_port(), **fields}
    path = folder / "hosts.json"
    path.write_text(json.dumps(content))
    return path
