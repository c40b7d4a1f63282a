"""What is written, read back as the tools read it: the same cuts on the same devices; and what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.cli import main
from edgeopt.errors import InputError
from edgeopt.export import TARGETS, export_plan
from edgeopt.profiles import dump_yaml
from tests.edgeopt.export.plans import elements, split_plan, tiny_model
from tests.edgeopt.factories import image_problem


@st.composite
def plans(draw, apart: bool = False):
    """Draw cuts of up to 40 blocks over up to 7 devices; ``apart``: a device may hold several segments."""
    num_elements = draw(st.integers(3, 42))
    stages = draw(st.integers(1, min(7, num_elements)))
    inner = draw(st.lists(st.integers(1, num_elements - 1), min_size=stages - 1, max_size=stages - 1, unique=True))
    devices = list(range(stages)) if not apart else draw(st.lists(st.integers(0, 3), min_size=stages, max_size=stages))
    return split_plan([*sorted(inner), num_elements], devices)


def device_map_as_read(mapping, num_blocks):
    """The longest key that is a prefix of a parameter's name decides, as in accelerate."""

    def place(name):
        return mapping[max((key for key in mapping if f"{name}.".startswith(f"{key}.")), key=len)]

    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.weight" for i in range(num_blocks))]
    assert place("model.norm.weight") == place("lm_head.weight")
    return [place(name) for name in [*names, "lm_head.weight"]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plans(apart=True))
def test_device_maps_come_back(plan):
    exported = export_plan(plan, "accelerate")
    places = device_map_as_read(json.loads(exported.text), plan.cuts[-1] - 2)
    assert [exported.devices[place] for place in places] == elements(plan)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plans())
def test_split_points_come_back(plan):
    document = json.loads(export_plan(plan, "torch-pipelining").text)
    assert set(document["split_spec"].values()) <= {"BEGINNING"}
    modules = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(plan.cuts[-1] - 2)), "model.norm"]
    stage = np.cumsum([module in document["split_spec"] for module in modules])
    assert [document["ranks"][k] for k in stage] == elements(plan)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plans())
def test_ranges_come_back(plan):
    places = {}
    for rank in json.loads(export_plan(plan, "transformers").text)["ranks"]:
        for name in [*rank["modules"], *range(*rank["layers"])]:
            assert places.setdefault(name, rank["device"]) == rank["device"], f"{name} is on two ranks"
    blocks = [places[i] for i in range(plan.cuts[-1] - 2)]
    assert places["model.norm"] == places["lm_head"]
    assert [places["model.embed_tokens"], *blocks, places["lm_head"]] == elements(plan)


def vllm_blocks(text, num_layers):
    """As vLLM's ``get_pp_indices`` reads the variable: the range of every rank."""
    counts = [int(count) for count in re.match(r"VLLM_PP_LAYER_PARTITION=(\S+) vllm serve MODEL", text)[1].split(",")]
    assert len(counts) == int(re.search(r"--pipeline-parallel-size (\d+)", text)[1])
    assert sum(counts) == num_layers
    return [rank for rank, count in enumerate(counts) for _ in range(count)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plans())
def test_layer_partitions_come_back(plan):
    exported = export_plan(plan, "vllm")
    blocks = [exported.devices[rank] for rank in vllm_blocks(exported.text, plan.cuts[-1] - 2)]
    assert blocks == elements(plan)[1:-1]
    moved = [note for note in exported.notes if note.startswith("it moves")]
    # The first rank has the embedding, the last the head: anything else must have been said.
    assert len(moved) == sum(stage.stop == 1 or stage.start == plan.cuts[-1] - 1 for stage in plan.stages)
    assert "".join(moved).count("the embedding") == (exported.devices[0] != elements(plan)[0])
    assert "".join(moved).count("the head") == (exported.devices[-1] != elements(plan)[-1])


def llama_slots(text, num_layers):
    """As ``load_tensors`` of llama.cpp divides blocks and output, in its single precision: a device for each slot."""
    shares = np.array([float(share) for share in re.search(r"--tensor-split (\S+)", text)[1].split(",")], np.float32)
    assert int(re.search(r"--n-gpu-layers (\d+)", text)[1]) == num_layers + 1, "else the first layers stay on the CPU"
    splits = np.cumsum(shares, dtype=np.float32) / shares.sum(dtype=np.float32)
    ratios = np.arange(num_layers + 1).astype(np.float32) / np.float32(num_layers + 1)
    return [int(slot) for slot in np.searchsorted(splits, ratios, side="right")]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(plans())
def test_tensor_splits_come_back(plan):
    exported = export_plan(plan, "llama.cpp")
    servers = [server.removesuffix(":50052") for server in exported.text.split("--rpc ")[1].strip().split(",")]
    assert servers == list(exported.devices)
    assert [servers[slot] for slot in llama_slots(exported.text, plan.cuts[-1] - 2)] == elements(plan)[1:]


def test_llama_cpp_says_where_the_embedding_is():
    assert not any("embedding" in note for note in export_plan(split_plan([3, 6]), "llama.cpp").notes)
    notes = export_plan(split_plan([3, 6], [1, 0]), "llama.cpp").notes
    assert any("embedding on the main host 'd0'; the plan has it on 'd1'" in note for note in notes)


def test_devices_are_called_what_the_tool_calls_them():
    exported = export_plan(split_plan([2, 4, 6]), "accelerate", {"d1": "0", "d0": "cpu"})
    assert device_map_as_read(json.loads(exported.text), 4) == ["cpu", "cpu", 0, 0, 1, 1]
    text = export_plan(split_plan([3, 6]), "llama.cpp", {"d0": "10.0.0.1", "d1": "10.0.0.2:60000"}).text
    assert text.endswith("--rpc 10.0.0.1:50052,10.0.0.2:60000\n")


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "accelerate"])
def test_a_device_with_two_segments_is_refused(target):
    with pytest.raises(InputError, match=r"devices: .*'d0' holds the embedding and blocks 0 to 0 and, apart") as caught:
        export_plan(split_plan([2, 4, 6], [0, 1, 0]), target)
    assert target in str(caught.value)
    assert "export to accelerate" in caught.value.findings[0].mend


@pytest.mark.parametrize("target", TARGETS)
def test_stages_of_different_precision_are_refused(target):
    with pytest.raises(InputError, match=r"variants: stages compute .*stage 0 int4, stage 1 int8"):
        export_plan(split_plan([3, 6], variants=["int4", "int8"]), target)
    assert any("weights in int4" in note for note in export_plan(split_plan([6], variants=["int4"]), target).notes)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_no_split_of_one_language_model_is_refused(target):
    images = split_plan([3, 6]).model_copy(update={"problem": image_problem(), "strategy": "multi_stage"})
    with pytest.raises(InputError, match="is no split of one language model"):
        export_plan(images, target)
    with pytest.raises(InputError, match="does not say which class"):
        export_plan(split_plan([3, 6], model=tiny_model(class_name=None)), target)
    with pytest.raises(InputError, match=r"has 6 elements, its configuration 9 blocks"):
        export_plan(split_plan([3, 6], model=tiny_model(num_hidden_layers=9)), target)


@pytest.mark.parametrize("target", ["accelerate", "torch-pipelining", "transformers"])
def test_unknown_module_names_are_refused(target):
    with pytest.raises(InputError, match="names of transformers GPT2LMHeadModel are not known"):
        export_plan(split_plan([3, 6], model=tiny_model(class_name="GPT2LMHeadModel")), target)


def test_an_embedding_moves_only_where_it_fits():
    assert export_plan(split_plan([1, 3, 6]), "vllm").text.startswith("VLLM_PP_LAYER_PARTITION=2,2 ")
    with pytest.raises(InputError, match=r"stages\[0\].*holds 2 MB of the 1\.5 MB .*export to accelerate"):
        export_plan(split_plan([1, 3, 6], memory=1.5e6), "vllm")
    with pytest.raises(InputError, match=r"stages\[2\].*moves the head from 'd2' to 'd1'"):
        export_plan(split_plan([2, 5, 6], memory=1.5e6), "vllm")


def test_more_devices_than_llama_cpp_takes_are_refused():
    with pytest.raises(InputError, match=r"16 devices, and --tensor-split takes 15"):
        export_plan(split_plan(list(range(2, 18))), "llama.cpp")


def test_tied_matrices_on_two_devices_are_noted():
    tied = split_plan([3, 6], model=tiny_model(tie_word_embeddings=True))
    for target in TARGETS:
        assert any("one matrix" in note for note in export_plan(tied, target).notes), target


@pytest.mark.parametrize(
    ("target", "names", "words"),
    [
        ("exo", {}, "there is no target 'exo'"),
        ("vllm", {"d0": "cuda:0"}, "its ranks follow the stages"),
        ("accelerate", {"fridge": "0"}, "no stage of the plan runs on 'fridge'"),
        ("accelerate", {"d0": "cpu", "d1": "cpu"}, "two devices have one name"),
    ],
)
def test_wrong_requests_are_refused(target, names, words):
    with pytest.raises(InputError, match=words):
        export_plan(split_plan([3, 6]), target, names)


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(dump_yaml(split_plan([3, 6])), encoding="utf-8")
    return path


def test_the_verb_prints_for_the_tool_and_notes_beside(plan_file, tmp_path, capsys):
    assert main(["export", str(plan_file), "--to", "vllm"]) == 0
    shown = capsys.readouterr()
    assert shown.out == export_plan(split_plan([3, 6]), "vllm").text
    assert "note: rank k runs stage k: 0 on 'd0', 1 on 'd1'" in shown.err
    target = tmp_path / "map.json"
    words = ["export", str(plan_file), "--to", "accelerate", "--device", "d0=cpu", "-o", str(target)]
    assert main(words) == 0
    assert set(json.loads(target.read_text()).values()) == {"cpu", 0}
    capsys.readouterr()
    assert main(["export", str(plan_file), "--to", "llama.cpp", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["devices"] == ["d0", "d1"]
    assert "--tensor-split 2,3 " in document["text"]
    assert document["notes"]


@pytest.mark.parametrize(
    "words",
    [
        ["--to", "exo"],
        ["--to", "accelerate", "--device", "d0"],
        ["--to", "vllm", "--device", "d0=1", "--device", "d0=2"],
    ],
)
def test_the_verb_refuses_with_code_2(plan_file, capsys, words):
    assert main(["export", str(plan_file), *words]) == 2
    assert "try: edgeopt export --help" in capsys.readouterr().err
