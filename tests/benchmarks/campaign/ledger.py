"""What a campaign has found so far, one JSON line a finding, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["Ledger"]


class Ledger:
    """Findings by (part, key) in a file that is only ever appended to.

    Parameters
    ----------
    folder
        Holds ``findings.jsonl`` and whatever else the parts keep.
    settings
        What the findings depend on; findings made under other settings are refused.
    resume
        Go on with what the folder holds; otherwise it is begun anew.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], resume: bool) -> None:
        self.folder, self.path = folder, folder / "findings.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._found: dict[tuple[str, str], dict[str, Any]] = {}
        if resume and self.path.exists():
            lines = [json.loads(line) for line in self._whole_lines()]
            if lines and lines[0]["record"] != settings:
                raise SystemExit(f"{self.path} was made with {lines[0]['record']}, not {settings}; leave out --resume")
            self._found = {(line["part"], line["key"]): line["record"] for line in lines}
        else:
            self.path.write_text("", encoding="utf-8")
        if ("settings", "") not in self._found:
            self.put("settings", "", settings)

    def _whole_lines(self) -> list[str]:
        """Lines that end: the last may have been cut off, and is cut off for good before more is appended."""
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")
        return whole.splitlines()

    def get(self, part: str, key: str) -> dict[str, Any] | None:
        """Return a finding, if there is one."""
        return self._found.get((part, key))

    def put(self, part: str, key: str, record: dict[str, Any]) -> dict[str, Any]:
        """Keep a finding; it is on the disk when this returns."""
        self._found[part, key] = record
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"part": part, "key": key, "record": record}, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        return record

    def of(self, part: str) -> dict[str, dict[str, Any]]:
        """All findings of a part, by key."""
        return {key: record for (name, key), record in self._found.items() if name == part}
