"""Names, paths and inline parts become one problem; changed and repeated devices; where things are found."""

from __future__ import annotations

import textwrap
import time

import pytest

from edgeopt.errors import InputError
from edgeopt.profiles import list_profiles, load, load_device, load_model, load_network, load_problem
from edgeopt.profiles.library import KINDS, known_names

DEVICE = textwrap.dedent(
    """\
    name: board
    kind: device
    source: numbers made for a test
    compute: {float32: 100 GFLOP/s}
    memory: 4 GiB
    memory_bandwidth: 10 GB/s
    launch_overhead: 10 us
    efficiency: {compute: 0.5, memory_bandwidth: 0.5, basis: assumed}
    power: {busy: 10 W, idle: 2 W}
    """
)


def problem_of(tmp_path, devices, rest="network: ethernet-1g\n"):
    (tmp_path / "board.yaml").write_text(DEVICE)
    path = tmp_path / "problem.yaml"
    path.write_text(
        f"name: p\nmodel: llama-3.2-1b\nworkload: {{prompt_tokens: 8, new_tokens: 2}}\ndevices:\n{devices}{rest}"
    )
    return load_problem(path)


def test_names_and_paths_relative_to_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    problem = problem_of(tmp_path, "  - rtx-4090\n  - board.yaml\n  - ./board.yaml\n".replace("  - ./board.yaml\n", ""))
    assert [device.name for device in problem.devices] == ["rtx-4090", "board"]
    assert problem.devices[0] == load_device("rtx-4090")
    assert problem.model == load_model("llama-3.2-1b")
    assert problem.network == load_network("ethernet-1g")


def test_changes_are_merged_and_sourced(tmp_path):
    change = "  - {profile: board.yaml, name: pi, memory: 2 GiB, power: {busy: 7 W}, efficiency: {compute: 0.9}}\n"
    (device,) = problem_of(tmp_path, change).devices
    board = load_device(tmp_path / "board.yaml")
    assert (device.name, device.memory) == ("pi", 2 * 2**30)
    assert (device.power.busy, device.power.idle) == (7.0, 2.0)
    assert (device.efficiency.compute, device.efficiency.memory_bandwidth) == (0.9, 0.5)
    assert device.memory_bandwidth == board.memory_bandwidth
    assert device.source == board.source
    changed = {"memory", "power.busy", "efficiency.compute"}
    assert device.sources == dict.fromkeys(changed, "problem file problem.yaml")


def test_count_repeats_a_device(tmp_path):
    inline = DEVICE.replace("name: board", "name: mine").replace("kind: device\nsource: numbers made for a test\n", "")
    listed = textwrap.indent(f"count: 2\n{inline}", "    ").replace("    ", "  - ", 1)
    problem = problem_of(tmp_path, "  - {profile: board.yaml, name: pi, count: 3}\n" + listed)
    assert [device.name for device in problem.devices] == ["pi-1", "pi-2", "pi-3", "mine-1", "mine-2"]
    assert problem.devices[3].source == "problem file problem.yaml"
    links = "network:\n  links:\n    - {between: [pi-1, pi-3], rate: 1 Gbit/s, latency: 1 ms}\n"
    many = problem_of(tmp_path, "  - {profile: board.yaml, name: pi, count: 3}\n", links)
    assert many.network.links[0].between == ("pi-1", "pi-3")


def test_the_same_device_twice_needs_a_name_or_a_count(tmp_path):
    with pytest.raises(InputError, match=r"a device called 'board' is there already.*count"):
        problem_of(tmp_path, "  - board.yaml\n  - board.yaml\n")


def test_checkpoints_are_relative_to_the_profile(tmp_path):
    architecture = (
        "architecture: {library: transformers, class: LlamaForCausalLM, config: {checkpoint: x}, checkpoint: w}\n"
    )
    model = tmp_path / "m.yaml"
    head = "name: m\nkind: model\nsource: a test\nfamily: causal_lm\ndtype: float32\n"
    model.write_text(head + architecture + LAYERS)
    loaded = load_model(model)
    assert loaded.architecture.checkpoint == str(tmp_path / "w")
    assert loaded.architecture.config == {"checkpoint": "x"}  # not ours to touch


LAYERS = textwrap.dedent(
    """\
    token: 8 B
    layers:
      - {name: e, weights: 1 B, flop_per_token: 0 FLOP, flop_per_token_context: 0 FLOP, kv_per_token: 0 B, output_per_token: 1 B}
    """  # noqa: E501
)


def test_users_folders_come_first(tmp_path, monkeypatch):
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "rtx-4090.yaml").write_text(DEVICE.replace("board", "rtx-4090"))
    (tmp_path / "devices" / "mine.yaml").write_text(
        DEVICE.replace("board", "mine").replace("kind", "description: My own\nkind")
    )
    monkeypatch.setenv("EDGEOPT_PROFILES", str(tmp_path))
    assert load_device("rtx-4090").memory == 4 * 2**30
    assert load_device("mine").name == "mine"
    assert load_device("rtx-3090").memory > 4 * 2**30
    entries = {entry["name"]: entry for entry in list_profiles("devices")}
    assert entries["mine"]["description"] == "My own"
    assert entries["rtx-4090"]["file"].startswith(str(tmp_path))


def test_list_knows_every_kind_and_stands_a_broken_file(tmp_path, monkeypatch):
    entries = list_profiles()
    assert [kind for kind in KINDS if any(entry["kind"] == kind for entry in entries)] == list(KINDS)
    assert all(set(entry) == {"kind", "name", "description", "file"} for entry in entries)
    assert list_profiles("device") == [entry for entry in entries if entry["kind"] == "device"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "broken.yaml").write_text("[")
    monkeypatch.setenv("EDGEOPT_PROFILES", str(tmp_path))
    assert any(
        entry["name"] == "broken" and "cannot be read" in entry["description"] for entry in list_profiles("model")
    )
    with pytest.raises(InputError, match="use one of device, model, network, problem"):
        list_profiles("gadgets")


def test_every_profile_is_named_like_its_file():
    for entry in list_profiles():
        loaded = load(entry["name"], entry["kind"])
        assert loaded.name == entry["name"]
        assert loaded.description


def test_load_finds_the_kind_and_says_when_it_cannot():
    assert load("ethernet-1g").kind == "network"
    assert load("llama-3.1-8b", "models").name == "llama-3.1-8b"
    both = set(known_names("model")) & set(known_names("problem"))
    if both:
        with pytest.raises(InputError, match="is a model and a problem; say which"):
            load(min(both))
    with pytest.raises(InputError, match="did you mean 'ethernet-1g'"):
        load("ethernet1g")
    with pytest.raises(InputError, match="a name has no folders"):
        load("../ethernet-1g")


def test_three_devices_load_quickly():
    load_problem("home-cluster")  # imports
    times = []
    for _ in range(5):
        start = time.perf_counter()
        load_problem("home-cluster")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15


def test_problems_of_the_library_need_no_pint():
    import subprocess
    import sys

    code = (
        "import sys; from edgeopt.profiles import load_problem, list_profiles\n"
        "[load_problem(entry['name']) for entry in list_profiles('problem')]\n"
        "print([name for name in ('pint', 'torch', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
