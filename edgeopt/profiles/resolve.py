"""From a problem file to a problem with nothing left to look up, and every mistake on the way in one report.

Model, devices and network are names, paths or written inline. A device may be a profile with changes
(``{profile: rtx-4090, memory: 10 GiB}``) and may be repeated (``count: 3``). Each value remembers the file and line
that it came from, so that a message about a merged device points at the line to be mended.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from edgeopt.errors import Finding, InputError
from edgeopt.profiles import checks
from edgeopt.profiles.base import Profile, Strict
from edgeopt.profiles.device import Device
from edgeopt.profiles.findings import translate
from edgeopt.profiles.library import find
from edgeopt.profiles.model import CascadedDiffusion, CausalLM, Diffusion
from edgeopt.profiles.network import Network
from edgeopt.profiles.problem import (
    CascadeWorkload,
    Constraints,
    ImageWorkload,
    Objective,
    Problem,
    TextWorkload,
    Workload,
)
from edgeopt.profiles.reader import Document, FieldPath, Flaw, read_document
from edgeopt.profiles.sources import check_sources, covered

__all__ = ["FAMILIES", "MAX_COUNT", "Part", "resolve_problem", "resolve_profile"]

MAX_COUNT = 1000
FAMILIES: dict[str, type[BaseModel]] = {
    "causal_lm": CausalLM, "diffusion": Diffusion, "cascaded_diffusion": CascadedDiffusion,
}  # fmt: skip

_CHECKS: dict[type[BaseModel], Callable[[Any], Iterator[Flaw]]] = {
    Device: checks.check_device, Network: checks.check_network,
    CausalLM: checks.check_model, Diffusion: checks.check_model, CascadedDiffusion: checks.check_model,
}  # fmt: skip
# Overriding one of these changes no number, so it needs no source.
_WORDS_ONLY = ("name", "description", "source", "sources", "kind", "runtime", "timings")


@dataclass
class Part:
    """Plain data of a model, device or network, and where its values were written."""

    data: dict[str, Any]
    origins: dict[FieldPath, tuple[Document, FieldPath]]
    findings: list[Finding] = field(default_factory=list)

    def finding(self, flaw: Flaw) -> Finding:
        """Return a flaw of the data as a finding in the file that has to be mended."""
        for length in range(len(flaw.path), -1, -1):
            if flaw.path[:length] in self.origins:
                document, base = self.origins[flaw.path[:length]]
                return document.finding((*base, *flaw.path[length:]), flaw.message, flaw.mend)
        raise AssertionError("the empty path has an origin")

    def report(self, flaws: Iterable[Flaw]) -> None:
        """Keep flaws as findings."""
        self.findings += map(self.finding, flaws)

    def build(self, model: type[BaseModel]) -> Any:
        """Return the validated object, or ``None`` after keeping what was found."""
        before = len(self.findings)
        if issubclass(model, Profile):
            self.report(check_sources(self.data))
        try:
            built = model.model_validate(self.data, context={"from_file": True})
        except ValidationError as error:
            self.report(translate(error, model, self.data))
            return None
        self.report(_CHECKS[model](built) if model in _CHECKS else ())
        return built if len(self.findings) == before else None


class _Shell(Strict):
    """A problem file's own level; the parts are validated one by one, so that each reports all its errors."""

    name: str
    description: str = ""
    model: Any
    strategy: str = "auto"
    workload: Any
    devices: Any
    network: Any
    objective: Objective = "latency"
    constraints: Constraints = Constraints()


def resolve_profile(document: Document, kind: str) -> Any:
    """Return the device, model or network that a file holds.

    Raises
    ------
    InputError
        Everything that is wrong with the file.
    """
    part = Part(copy.copy(document.data), {(): (document, ())})
    built = _build(part, kind, document)
    if built is None:
        raise InputError(_in_order(part.findings))
    return built


def _build(part: Part, kind: str, document: Document) -> Any:
    """Build a profile of a kind; for a model the class follows from its family."""
    if kind != "model":
        return part.build({"device": Device, "network": Network}[kind])
    family = part.data.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        message = "is missing" if "family" not in part.data else f"'{family}' is not a family of models"
        part.report([Flaw(("family",), message, f"write `family:` with one of {', '.join(FAMILIES)}")])
        return None
    part.data = _absolute_checkpoints(part.data, document.path.parent)
    return part.build(FAMILIES[family])


def _absolute_checkpoints(data: Any, folder: Path) -> Any:
    """Return the data with relative paths of checkpoints, prompts and traces made relative to the profile's folder."""
    if isinstance(data, list):
        return [_absolute_checkpoints(item, folder) for item in data]
    if not isinstance(data, dict):
        return data
    result = {key: _absolute_checkpoints(value, folder) for key, value in data.items() if key != "config"}
    if "config" in data:  # free-form, none of our words
        result["config"] = data["config"]
    for name in ("checkpoint", "prompts", "trace", "queries"):
        ref = result.get(name)
        if isinstance(ref, str) and not ref.startswith("~"):
            result[name] = str((folder / ref).absolute())
    return result


def resolve_problem(document: Document) -> Problem:
    """Return the problem that a file describes.

    Raises
    ------
    InputError
        Everything that is wrong with the file and with what it refers to.
    """
    return _Resolver(document).problem()


class _Resolver:
    def __init__(self, document: Document) -> None:
        self.document, self.data = document, document.data
        self.root = Part(document.data, {(): (document, ())})
        self.findings: list[Finding] = self.root.findings
        self._documents: dict[Path, Document] = {}

    def problem(self) -> Problem:
        """Read the parts, then check what holds between them as far as they could be read."""
        shell = self.root.build(_Shell)
        model, _ = self._single("model")
        network, network_part = self._single("network")
        workload = self._workload(model)
        devices = self._devices()
        names = [str(part.data.get("name")) for part, _ in devices]
        whole = [device for _, device in devices if device is not None]

        for i, message, mend in checks.check_names(names):
            self.findings.append(devices[i][0].finding(Flaw(("name",), message, mend)))
        if network is not None and devices:
            network_part.report(checks.check_links(network, names))
            self.findings += network_part.findings
        if shell is not None and devices:
            self.root.report(checks.check_constraints(shell.constraints, names))
        if model is not None:
            for part, device in devices:
                if device is not None:
                    self.findings += map(part.finding, checks.check_timings(device, model))
            if workload is not None:
                self.root.report(checks.check_fit(workload, model))
            if shell is not None:
                at = {id(device): part for part, device in devices}
                for flaw in checks.check_objective(shell.objective, shell.constraints, whole, model):
                    self.findings.append(self._place(flaw, [at[id(device)] for device in whole]))
        if self.findings:
            raise InputError(_in_order(self.findings))
        parts = {"model": model, "workload": workload, "devices": whole, "network": network}
        return Problem(**{name: getattr(shell, name) for name in _Shell.model_fields if name not in parts}, **parts)

    def _place(self, flaw: Flaw, devices: list[Part]) -> Finding:
        if flaw.path[0] == "devices":
            return devices[int(flaw.path[1])].finding(flaw._replace(path=flaw.path[2:]))
        return self.root.finding(flaw)

    def _refer(self, ref: str, kind: str, at: FieldPath) -> Document | None:
        """Read the file that a name or path in this problem means."""
        try:
            path = find(ref, kind, self.document.path.parent)
            if path not in self._documents:
                self._documents[path] = read_document(path)
            return self._documents[path]
        except InputError as error:
            self.findings += error.findings
        except ValueError as error:
            self.root.report([Flaw(at, *error.args)])
        return None

    def _single(self, key: str) -> tuple[Any, Part]:
        """Read ``model`` or ``network``: a name, a path, or a mapping."""
        value, nothing = self.data.get(key), Part({}, {(): (self.document, (key,))})
        if isinstance(value, str):
            document = self._refer(value, key, (key,))
            if document is None:
                return None, nothing
            part = Part(copy.copy(document.data), {(): (document, ())})
        elif isinstance(value, dict):
            document, part = self.document, Part(self._sourced(value), {(): (self.document, (key,))})
            if key == "network":
                part.data.setdefault("name", "network")
        else:
            if key in self.data:
                mend = f"write the name of a {key}, a path to one, or the {key} itself"
                self.root.report([Flaw((key,), f"{_what(value)} is no {key}", mend)])
            return None, nothing
        built = _build(part, key, document)
        if built is None:
            self.findings += part.findings
        return built, part

    def _sourced(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers that a problem file states itself have that file as their source."""
        return {"source": f"problem file {self.document.path.name}", **data}

    def _workload(self, model: Any) -> Workload | None:
        value = self.data.get("workload")
        if not isinstance(value, dict):
            if "workload" in self.data:
                mend = "write `workload: {prompt_tokens: 128, new_tokens: 64}`"
                self.root.report([Flaw(("workload",), f"{_what(value)} is no workload", mend)])
            return None
        kind = value.get("kind")
        if kind is None:
            is_text = bool(value.keys() & {"prompt_tokens", "new_tokens"})
            is_image = bool(value.keys() & {"steps", "images", "guidance"})
            images = "cascade" if isinstance(model, CascadedDiffusion) else "image"
            by_model = images if isinstance(model, Diffusion | CascadedDiffusion) else "text"
            kind = "text" if is_text and not is_image else images if is_image and not is_text else by_model
        classes = {"text": TextWorkload, "image": ImageWorkload, "cascade": CascadeWorkload}
        if kind not in classes:
            mend = "write text, image or cascade"
            self.root.report([Flaw(("workload", "kind"), f"'{kind}' is not a kind of workload", mend)])
            return None
        part = Part({**value, "kind": kind}, {(): (self.document, ("workload",))})
        workload = part.build(classes[kind])
        self.findings += part.findings
        return workload

    def _devices(self) -> list[tuple[Part, Device | None]]:
        """Read every entry of ``devices:`` and repeat those with a count."""
        entries = self.data.get("devices")
        if not isinstance(entries, list):
            if "devices" in self.data:
                mend = "write a list of names, paths or devices"
                self.root.report([Flaw(("devices",), f"{_what(entries)} is no list of devices", mend)])
            return []
        if not entries:
            self.root.report(
                [Flaw(("devices",), "the list is empty", "list at least one device, for example `- raspberry-pi-5`")]
            )
        result: list[tuple[Part, Device | None]] = []
        for i, entry in enumerate(entries):
            part, count = self._entry(entry, ("devices", i))
            if part is None:
                continue
            device = part.build(Device)
            self.findings += part.findings
            if count is None:
                result.append((part, device))
                continue
            for k in range(1, count + 1):
                name = f"{part.data.get('name')}-{k}"
                twin = device.model_copy(update={"name": name}) if device else None
                result.append((Part({**part.data, "name": name}, part.origins), twin))
        return result

    def _entry(self, entry: Any, at: FieldPath) -> tuple[Part | None, int | None]:
        """Return a device's data and how often it is repeated (``None``: once, under its own name)."""
        if isinstance(entry, str):
            document = self._refer(entry, "device", at)
            return (None if document is None else Part(document.data, {(): (document, ())})), None
        if not isinstance(entry, dict):
            self.root.report([Flaw(at, f"{_what(entry)} is no device", "write a name, a path, or a device")])
            return None, None
        changes = {key: value for key, value in entry.items() if key not in ("profile", "count")}
        count = entry.get("count")
        if "count" in entry and (isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_COUNT):
            mend = f"write a whole number from 1 to {MAX_COUNT}"
            self.root.report([Flaw((*at, "count"), f"'{count}' is not a number of devices", mend)])
            count = None
        if "profile" not in entry:
            return Part(self._sourced(changes), {(): (self.document, at)}), count
        ref = entry["profile"]
        if not isinstance(ref, str):
            self.root.report(
                [Flaw((*at, "profile"), f"{_what(ref)} is no name", "write the name of a device, or a path")]
            )
            return None, None
        document = self._refer(ref, "device", (*at, "profile"))
        if document is None:
            return None, None
        part = Part(copy.deepcopy(document.data), {(): (document, ())})
        changed = list(self._merge(part, changes, (), at))
        if "memory" in changes and "margin" not in changes:
            part.data.pop("margin", None)  # such memory is what plans may use, not what the machine has
        if isinstance(part.data.get("sources", {}), dict) and "source" not in changes:
            source = f"problem file {self.document.path.name}"
            words = (path for path in changed if path.split(".")[0].split("[")[0] not in _WORDS_ONLY)
            own = {path: source for path in words if any(covered(part.data, path))}
            if own:
                part.data["sources"] = self._still_there(part, document) | own | changes.get("sources", {})
        return part, count

    def _still_there(self, part: Part, before: Document) -> dict[str, Any]:
        """Sources of the profile but for fields that a change took away (``power: null``)."""
        return {
            key: text
            for key, text in part.data.get("sources", {}).items()
            if any(covered(part.data, key)) or not any(covered(before.data, key))
        }

    def _merge(self, part: Part, changes: Mapping[str, Any], path: FieldPath, at: FieldPath) -> Iterator[str]:
        """Write changes over a device's data, mapping by mapping; yield the names of the changed fields."""
        target = part.data
        for key in path:
            target = target[key]
        for key, value in changes.items():
            here = (*path, key)
            part.origins[here] = (self.document, (*at, *here))
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                # The mapping itself stays where it was: only what is changed below it is from this file.
                del part.origins[here]
                yield from self._merge(part, value, here, at)
            else:
                target[key] = copy.deepcopy(value)
                yield ".".join(map(str, here))


def _what(value: Any) -> str:
    kinds = {dict: "a mapping", list: "a list", type(None): "an empty value"}
    return kinds.get(type(value), f"'{str(value)[:60]}'")


def _in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Each finding once, in the order in which a reader meets them."""
    return sorted(dict.fromkeys(findings), key=lambda finding: (finding.file or "", finding.line or 0))
