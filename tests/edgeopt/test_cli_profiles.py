"""``edgeopt profile`` and ``edgeopt profiles``: flags reach the measurement, the library answers."""

from __future__ import annotations

import json

import pytest

from edgeopt.cli import main
from edgeopt.profiles import load_device, load_model, load_network, load_problem
from edgeopt.profiles.network import LinkQuality
from tests.edgeopt.cli_cases import PROBLEM
from tests.edgeopt.factories import device

profiler = pytest.importorskip("edgeopt.profiler")


@pytest.fixture
def measured(monkeypatch):
    """Replace the measurements by functions that note their options."""
    seen = {}

    def profile_device(name, **options):
        seen.update(options, name=name)
        options["progress"]("a line of progress")
        return device(name)

    def profile_link(**options):
        seen.update(options)
        return LinkQuality(rate=1e9, latency=1e-4)

    monkeypatch.setattr(profiler, "profile_device", profile_device)
    monkeypatch.setattr(profiler, "profile_link", profile_link)
    return seen


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["--threads", "3"], "threads", 3),
        ([], "threads", None),
        (["--dtype", "bfloat16", "--dtype", "float32"], "dtypes", ("bfloat16", "float32")),
        ([], "dtypes", ("float32",)),
        (["--accelerator", "cuda"], "accelerator", "cuda"),
        (["--repeats", "9"], "repeats", 9),
        (["--processes", "4"], "processes", 4),
        (["--timeout", "3 min"], "timeout_s", 180.0),
        (["--threads", "1"], "command", "edgeopt profile device mine --threads 1"),
    ],
)
def test_every_flag_reaches_the_measurement_of_a_device(measured, words, option, value, capsys):
    assert main(["profile", "device", "mine", *words]) == 0
    assert measured["name"] == "mine"
    assert measured[option] == value


@pytest.fixture
def timed(monkeypatch):
    """Replace the timing of models on a device by a function that notes its options."""
    seen = {}

    def profile_model(device, models, workloads, **options):
        seen.update(options, device=device, models=models, workloads=workloads)
        options["progress"]("a line of progress")
        return device

    monkeypatch.setattr(profiler, "profile_model", profile_model)
    return seen


def test_profile_model_on_a_device_passes_every_flag_on(timed, tmp_path):
    target = tmp_path / "here.yaml"
    words = ["--prompt-tokens", "10", "--prompt-tokens", "20", "--new-tokens", "5", "--batch", "2", "--batch", "4"]
    words += ["--repeats", "7", "--processes", "3", "--timeout", "9 s", "-o", str(target)]
    assert main(["profile", "model", "demo-llm", "--on", "laptop-cpu", *words]) == 0
    assert load_device(str(target)).name == timed["device"].name == "laptop-cpu"
    assert [model.name for model in timed["models"]] == ["demo-llm"] * 4
    asked = [(load.batch, load.prompt_tokens, load.new_tokens) for load in timed["workloads"]]
    assert asked == [(2, 10, 5), (2, 20, 5), (4, 10, 5), (4, 20, 5)]
    assert (timed["repeats"], timed["processes"], timed["timeout_s"]) == (7, 3, 9.0)
    assert "profile model demo-llm --on laptop-cpu" in timed["command"]
    words = ["--steps", "7", "--guidance", "2.5", "--batch", "3"]
    assert main(["profile", "model", "demo-diffusion", "--on", "laptop-cpu", *words]) == 0
    (load,) = timed["workloads"]
    assert (load.steps, load.guidance, load.images) == (7, 2.5, 3)


def test_profile_model_on_a_device_derives_configurations(timed, tmp_path):
    config = tmp_path / "tiny" / "config.json"
    config.parent.mkdir()
    config.write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 256,
                "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            }
        ),
        encoding="utf-8",
    )  # fmt: skip
    assert main(["profile", "model", str(config), "--on", "laptop-cpu", "--dtype", "float32", "--name", "mine"]) == 0
    (model,) = timed["models"]
    assert (model.name, model.dtype, sum(layer.count for layer in model.layers)) == ("mine", "float32", 4)


def test_models_come_with_their_workloads(measured):
    words = ["--model", "demo-llm", "--model", "demo-diffusion", "--prompt-tokens", "10", "--new-tokens", "5"]
    assert main(["profile", "device", "mine", *words, "--batch", "2", "--steps", "7", "--guidance", "2.5"]) == 0
    assert [model.name for model in measured["models"]] == ["demo-llm", "demo-diffusion"]
    text, image = measured["workloads"]
    assert (text.prompt_tokens, text.new_tokens, text.batch) == (10, 5, 2)
    assert (image.steps, image.images, image.guidance) == (7, 2, 2.5)


def test_a_device_profile_is_written_and_read_back(measured, tmp_path):
    target = tmp_path / "mine.yaml"
    assert main(["profile", "device", "mine", "-o", str(target)]) == 0
    assert load_device(str(target)) == device("mine")


def test_without_a_file_the_profile_goes_to_standard_output(measured, tmp_path, capsys):
    assert main(["profile", "device", "mine"]) == 0
    target = tmp_path / "printed.yaml"
    target.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_device(str(target)) == device("mine")


def test_a_link_becomes_a_network_with_its_source(measured, tmp_path):
    target = tmp_path / "net.yaml"
    assert (
        main(["profile", "link", "loopback", "--name", "net", "-o", str(target), "--repeats", "3", "--timeout", "9s"])
        == 0
    )
    network = load_network(str(target))
    assert network.default == LinkQuality(rate=1e9, latency=1e-4)
    assert "edgeopt profile link loopback" in network.source
    assert network.name == "net"
    assert (measured["repeats"], measured["timeout_s"], measured["pause_s"]) == (3, 9.0, 0.02)


@pytest.mark.parametrize(
    "words",
    [
        ["device", "mine", "--model", "no-such-model"],
        ["device", "mine", "--timeout", "3"],
        ["device", "mine", "--model", "demo-llm", "--prompt-tokens", "0"],
        ["device"],
        ["link", "loopback", "-o", "no/such/folder/net.yaml"],
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(measured, words, capsys):
    assert main(["profile", *words]) == 2
    assert measured == {}
    printed = capsys.readouterr()
    assert "try: edgeopt" in printed.err
    assert "Traceback" not in printed.err


class TestLibrary:
    def test_list_names_every_kind(self, capsys):
        assert main(["profiles", "list", "--json"]) == 0
        entries = json.loads(capsys.readouterr().out)
        assert {entry["kind"] for entry in entries} == {"device", "model", "network", "problem"}
        assert {"demo-llm", "home-cluster"} <= {entry["name"] for entry in entries if entry["kind"] == "problem"}

    @pytest.mark.parametrize("kind", ["problem", "problems"])
    def test_list_of_one_kind(self, capsys, kind):
        assert main(["profiles", "list", kind]) == 0
        printed = capsys.readouterr().out
        assert "home-cluster" in printed
        assert "macbook-m1" not in printed.split("description")[0]

    def test_list_of_no_kind(self, capsys):
        assert main(["profiles", "list", "gadgets"]) == 2
        assert "device, model, network, problem" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("kind", "name"), [("device", "macbook-m1"), ("network", "wifi-5-home"), ("model", "demo-llm")]
    )
    def test_show_prints_what_can_be_read_again(self, capsys, tmp_path, kind, name):
        from edgeopt import profiles

        assert main(["profiles", "show", name, "--kind", kind]) == 0
        target = tmp_path / "shown.yaml"
        target.write_text(capsys.readouterr().out, encoding="utf-8")
        load = getattr(profiles, f"load_{kind}")
        assert load(str(target)) == load(name)

    def test_show_finds_the_kind_and_speaks_json(self, capsys):
        assert main(["profiles", "show", "home-cluster", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["name"] == "home-cluster"
        assert len(shown["devices"]) == len(load_problem("home-cluster").devices)

    def test_show_asks_where_a_name_means_two_things(self, capsys):
        assert main(["profiles", "show", "demo-llm"]) == 2
        assert "--kind" in capsys.readouterr().err

    def test_show_of_nothing(self, capsys):
        assert main(["profiles", "show", "gadget"]) == 2
        assert "gadget" in capsys.readouterr().err

    def test_validate_a_good_and_a_bad_file(self, tmp_path, capsys):
        good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
        good.write_text(PROBLEM, encoding="utf-8")
        bad.write_text(
            PROBLEM.replace("memory: 2 GB", "memory: much").replace("token: 8 B", "token: 8"), encoding="utf-8"
        )
        assert main(["profiles", "validate", str(good)]) == 0
        assert "good.yaml" in capsys.readouterr().out
        assert main(["profiles", "validate", str(good), str(bad)]) == 2
        printed = capsys.readouterr()
        assert "bad.yaml" in printed.err
        assert "memory" in printed.err
        assert "token" in printed.err
        assert main(["profiles", "validate", str(bad), "--json"]) == 2
        findings = json.loads(capsys.readouterr().out)["error"]["findings"]
        assert {finding["field"].rpartition(".")[2] for finding in findings} == {"memory", "token"}

    def test_every_bundled_file_is_valid(self, capsys):
        assert main(["profiles", "list", "--json"]) == 0
        files = [entry["file"] for entry in json.loads(capsys.readouterr().out)]
        assert main(["profiles", "validate", *files]) == 0

    @pytest.mark.parametrize("kind", ["device", "model", "network", "problem"])
    def test_schema_is_a_json_schema(self, capsys, kind):
        import jsonschema

        assert main(["profiles", "schema", kind]) == 0
        schema = json.loads(capsys.readouterr().out)
        jsonschema.validators.validator_for(schema).check_schema(schema)
        assert "properties" in json.dumps(schema)

    def test_schema_of_no_kind(self, capsys):
        assert main(["profiles", "schema", "gadget"]) == 2
        assert "gadget" in capsys.readouterr().err


@pytest.mark.torch
def test_model_is_derived_from_a_configuration_on_disk(tmp_path, capsys):
    pytest.importorskip("transformers", reason="needs transformers: pip install 'edgeopt[models]'")
    config = tmp_path / "config.json"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config.write_text(json.dumps({"model_type": "llama", "vocab_size": 100, **sizes}))
    target = tmp_path / "tiny.yaml"
    words = ["profile", "model", str(config), "--name", "tiny", "--source", "a test", "--dtype", "float32"]
    assert main([*words, "-o", str(target)]) == 0
    model = load_model(str(target))
    assert [(layer.name, layer.count) for layer in model.layers] == [("embed", 1), ("block", 3), ("head", 1)]
    per_block = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64
    assert model.layers[1].weights == 4 * per_block
    assert main(["profile", "model", "llama-9.9"]) == 2
    assert "llama" in capsys.readouterr().err
