"""Every mistake in a problem file is named with its field and line, and with the way to mend it."""

from __future__ import annotations

import pytest

from edgeopt.errors import InputError
from edgeopt.profiles import load_device, load_problem, validate
from edgeopt.profiles.library import known_names
from tests.edgeopt.profiles.cases import DIFFUSION, LANGUAGE, PROBLEM


@pytest.fixture
def write(tmp_path):
    """Write a problem (and the models beside it) and return its path."""
    (tmp_path / "toy.yaml").write_text(LANGUAGE)
    (tmp_path / "images.yaml").write_text(DIFFUSION)

    def write(*changes, model="toy.yaml"):
        text = PROBLEM.format(model=model)
        for old, new in changes:
            assert text.count(old) >= 1, old
            text = text.replace(old, new, 1)
        path = tmp_path / "problem.yaml"
        path.write_text(text)
        return path

    return write


def found(path):
    with pytest.raises(InputError) as refused:
        load_problem(path)
    return refused.value.findings


def test_the_problem_itself_is_right(write):
    problem = load_problem(write())
    assert [device.name for device in problem.devices] == ["pi", "laptop"]
    assert problem.network.source == "problem file problem.yaml"
    assert problem.workload.kind == "text"


TIMING = (
    "    timings:\n      - {{model: toy, phase: {phase}, dtype: float32, batch: 1, {axis}unit: ms, repeats: 3, "
    "elements: {elements}, source: a test}}\nnetwork:"
)


@pytest.mark.parametrize(
    ("change", "field", "line", "message", "mend"),
    [
        (("    memory: 4 GiB\n", ""), "devices[0].memory", 6, "is missing", "add `memory: 4 GiB`"),
        (("name: house\n", ""), "name", 1, "is missing", "add `name:`"),
        (("model: toy.yaml\n", ""), "model", 1, "is missing", "add `model:`"),
        (("4 GiB", "4 GiB/s"), "devices[0].memory", 8, "'GiB/s' measures something else", "'4 GiB'"),
        (("4 GiB", "4"), "devices[0].memory", 8, "4 has no unit", "'4 GiB'"),
        (("4 GiB", "-4 GiB"), "devices[0].memory", 8, "is negative", "'4 GiB'"),
        (("4 GiB", ".nan"), "devices[0].memory", 8, "not a finite number", "'4 GiB'"),
        (("compute: 0.5", "compute: .nan"), "devices[0].efficiency.compute", 11, "nan is not a fraction", "0.8"),
        (("memory: 4", "memry: 4"), "devices[0].memry", 8, "unknown key 'memry'", "did you mean 'memory'"),
        (("strategy:", "stratgy:"), "stratgy", 3, "unknown key 'stratgy'", "did you mean 'strategy'?"),
        (
            ("rate: 1 Gbit/s", "colour: red, rate: 1 Gbit/s"),
            "network.links[0].colour",
            22,
            "unknown key",
            "known keys: rate, latency",
        ),
        (
            ("100 GFLOP/s}", "100 GFLOP/s, float23: 1 TFLOP/s}"),
            "devices[0].compute.float23",
            7,
            "'float23'",
            "'float32'",
        ),
        (
            ("basis: assumed", "basis: guessed"),
            "devices[0].efficiency.basis",
            11,
            "'guessed' is not known",
            "measured, assumed",
        ),
        (("name: laptop", "name: pi"), "devices[1].name", 12, "a device called 'pi' is there already", "`count:`"),
        (("name: pi", "name: a/b"), "devices[0].name", 6, "'a/b' is not a name", "use letters"),
        (
            ("[pi, laptop]", "[pi, labtop]"),
            "network.links[0].between[1]",
            22,
            "no device 'labtop'",
            "did you mean 'laptop'?",
        ),
        (("[pi, laptop]", "[pi, pi]"), "network.links[0]", 22, "joins 'pi' to itself", "remove it"),
        (("[pi, laptop]", "[pi]"), "network.links[0].between[1]", 22, "has 1 entries", "one more"),
        (("between: [pi, laptop], ", ""), "network.links[0]", 22, "`between` is missing", "between: [a, b]"),
        (("between: [pi, laptop]", "from: pi"), "network.links[0]", 22, "`to` is missing", "`from: a` and `to: b`"),
        (("between:", "from: pi, to: laptop, between:"), "network.links[0]", 22, "both", "keep `between`"),
        (("rate: 1 Gbit/s", "rate: 0 Mbit/s"), "network.links[0].rate", 22, "is zero", "leave a link out"),
        (("latency: 2 ms", "latency: -2 ms"), "network.default.latency", 20, "is negative", "'2 ms'"),
        (
            ("objective", "    - {from: laptop, to: pi, rate: 1 Gbit/s, latency: 1 ms}\nobjective"),
            "network.links[1]",
            23,
            "'laptop' to 'pi' is already given in links[0]",
            "one link per direction",
        ),
        (("source: pi", "source: phone"), "constraints.source", 24, "no device 'phone'", "known: pi, laptop"),
        (
            ("source: pi", "pin: {embed: lapto}"),
            "constraints.pin.embed",
            24,
            "no device 'lapto'",
            "did you mean 'laptop'?",
        ),
        (("source: pi", "forbid: [tv]"), "constraints.forbid[0]", 24, "no device 'tv'", "known"),
        (("source: pi", "forbid: [pi, laptop]"), "constraints.forbid", 24, "no device is left", "allow"),
        (("source: pi", "first: pi, forbid: [pi]"), "constraints.first", 24, "'pi' is forbidden", "take it off"),
        (("source: pi", "deadline: 5"), "constraints.deadline", 24, "5 has no unit", "'2 ms'"),
        (("source: pi", "energy: 5 J"), "devices[0].power.busy", 6, "missing for device 'pi'", "power: {busy: 15 W}"),
        (("objective: latency", "objective: energy"), "devices[0].power.busy", 6, "missing for device 'pi'", "busy"),
        (
            ("objective: latency", "objective: quality"),
            "objective",
            23,
            "'toy' carries no quality",
            "another objective",
        ),
        (("source: pi", "quality: 20"), "constraints.quality", 24, "'toy' carries no quality", "another objective"),
        (("objective: latency", "objective: speed"), "objective", 23, "'speed' is not a metric", "latency, throughput"),
        (("objective: latency", "objective: {latency: -1}"), "objective", 23, "negative", "zero or more"),
        (
            ("objective: latency", "objective: {latency: 0, energy: 0}"),
            "objective",
            23,
            "no weight is positive",
            "at least one",
        ),
        (("objective: latency", "objective: {lateny: 1}"), "objective", 23, "'lateny' is not a metric", "latency"),
        (("prompt_tokens: 8", "prompt_tokens: 0"), "workload.prompt_tokens", 4, "'0'", "greater than or equal to 1"),
        (("prompt_tokens: 8, ", ""), "workload.prompt_tokens", 4, "is missing", "add `prompt_tokens:`"),
        (
            ("{prompt_tokens: 8, new_tokens: 4}", "{steps: 4}"),
            "workload",
            4,
            "does not fit 'toy'",
            "prompt_tokens: 128",
        ),
        (("{prompt_tokens: 8, new_tokens: 4}", "fast"), "workload", 4, "'fast' is no workload", "prompt_tokens"),
        (("model: toy.yaml", "model: ../../secrets"), "model", 2, "a name has no folders", "a path that ends in .yaml"),
        (("model: toy.yaml", "model: ..\\\\toy"), "model", 2, "a name has no folders", "a path that ends in .yaml"),
        (("model: toy.yaml", 'model: "toy\\0"'), "model", 2, "null character", "plain name"),
        (("model: toy.yaml", "model: toi.yaml"), "model", 2, "there is no file 'toi.yaml'", ""),
        (("model: toy.yaml", "model: llama-3.1-8"), "model", 2, "no model 'llama-3.1-8'", "'llama-3.1-8b'"),
        (("model: toy.yaml", "model: [toy.yaml]"), "model", 2, "a list is no model", "the name of a model"),
        (("  - name: pi", "  - 7\n  - name: pi"), "devices[0]", 6, "'7' is no device", "write a name"),
        (("  - name: pi", "  - rtx-409\n  - name: pi"), "devices[0]", 6, "no device 'rtx-409'", "'rtx-4090'"),
        (("  - name: pi", "  - ../pi\n  - name: pi"), "devices[0]", 6, "a name has no folders", "a path that ends in"),
        (
            ("  - name: pi", "  - count: 0\n    name: pi"),
            "devices[0].count",
            6,
            "'0' is not a number of devices",
            "from 1",
        ),
        (
            ("network:", TIMING.format(phase="decode", axis="context: 8, ", elements="[1, 2]")),
            "devices[1].timings[0].elements",
            20,
            "has 2 values, 'toy' has 3",
            "one per chain element",
        ),
        (
            ("network:", TIMING.format(phase="step", axis="", elements="[1]")),
            "devices[1].timings[0].phase",
            20,
            "'step' is no phase of 'toy'",
            "prefill or decode",
        ),
        (
            ("network:", TIMING.format(phase="prefill", axis="", elements="[1, 2, 3]")),
            "devices[1].timings[0].tokens",
            20,
            "is missing for phase 'prefill'",
            "add `tokens:`",
        ),
        (
            ("network:", TIMING.format(phase="decode", axis="context: 8, ", elements="[1, -2, 3]")),
            "devices[1].timings[0].elements[1]",
            20,
            "-2.0 ms is not a duration",
            "what was measured",
        ),
    ],
)
def test_a_mistake_is_named_with_field_line_and_mend(write, change, field, line, message, mend):
    findings = found(write(change))
    matching = [finding for finding in findings if finding.field == field]
    assert matching, findings
    finding = matching[0]
    assert message in finding.message
    assert mend in finding.mend
    assert finding.mend
    assert finding.line == line
    assert finding.file.endswith("problem.yaml")
    # A name that is wrong is missing wherever it is used.
    assert len(findings) == 1 or field.endswith(".name"), findings


def test_an_empty_device_list(write):
    path = write()
    text = path.read_text()
    path.write_text(text[: text.index("devices:")] + "devices: []\n" + text[text.index("network:") :])
    (finding,) = found(path)
    assert (finding.field, finding.line, finding.message) == ("devices", 5, "the list is empty")


def test_all_mistakes_come_in_one_report(write, tmp_path):
    (tmp_path / "toy.yaml").write_text(LANGUAGE.replace("\ntoken: 8 B", "\ntoken: 8"))
    path = write(
        ("4 GiB", "4"),
        ("memory: 8 GiB", "memry: 8 GiB"),
        ("name: laptop", "name: pi"),
        ("objective: l", "objective: x"),
    )
    fields = {(finding.file.rsplit("/", 1)[-1], finding.field) for finding in found(path)}
    assert fields == {
        ("problem.yaml", "devices[0].memory"),
        ("problem.yaml", "devices[1].memry"),
        ("problem.yaml", "devices[1].name"),
        ("problem.yaml", "network.links[0].between[1]"),
        ("problem.yaml", "objective"),
        ("toy.yaml", "token"),
    }
    with pytest.raises(InputError) as refused:
        load_problem(path)
    assert len(str(refused.value).splitlines()) == 6


def test_an_image_workload_goes_with_an_image_model(write):
    (finding,) = found(write(model="images.yaml"))
    assert finding.field == "workload"
    assert "steps: 20" in finding.mend
    path = write(("{prompt_tokens: 8, new_tokens: 4}", "{steps: 4, images: 2}"), model="images.yaml")
    assert load_problem(path).workload.kind == "image"


def test_a_wrong_profile_is_reported_in_its_own_file_and_line(write, tmp_path):
    (tmp_path / "tv.yaml").write_text("name: tv\nkind: device\nsource: a test\nmemory: 1\n")
    findings = found(write(("  - name: pi", "  - {profile: tv.yaml, memory: 2}\n  - tv.yaml\n  - name: pi")))
    places = {(finding.file.rsplit("/", 1)[-1], finding.field, finding.line) for finding in findings}
    assert ("problem.yaml", "devices[0].memory", 6) in places  # the change is wrong here
    assert ("tv.yaml", "memory", 4) in places
    assert ("tv.yaml", "compute", 1) in places


@pytest.mark.parametrize(
    "ref", ["../rtx-4090", "a/../b", "/etc/passwd", "..", "", "a\0b", "x" * 500, "pi 5", "%2e%2e%2fx"]
)
def test_names_never_leave_the_library(ref):
    with pytest.raises(InputError):
        load_device(ref)


def test_the_wrong_kind_of_file(write, tmp_path):
    write()
    with pytest.raises(InputError, match="this is a model, not a problem"):
        load_problem(tmp_path / "toy.yaml")
    (tmp_path / "odd.yaml").write_text("name: x\n")
    assert "nothing says what this file is" in validate(tmp_path / "odd.yaml")[0].message


def test_every_shipped_file_is_right():
    from edgeopt.profiles.library import KINDS, roots

    files = [path for kind in KINDS for path in (roots()[-1] / f"{kind}s").glob("*.yaml")]
    assert len(files) >= 16
    for path in files:
        assert validate(path) == []
    assert "home-cluster" in known_names("problem")
