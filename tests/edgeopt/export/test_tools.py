"""What is written, in the hands of the tools themselves: they place and cut as the plan says, and compute the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeopt.export import export_plan
from edgeopt.export.base import split_of
from edgeopt.export.modules import CLASSES, modules_of
from tests.edgeopt.export.plans import CONFIG, split_plan, tiny_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

CUTS = [[1, 4, 6], [2, 5, 6], [3, 6], [6]]


def build(class_name="LlamaForCausalLM", **config):
    cls = getattr(transformers, class_name)
    torch.manual_seed(0)
    settings = CONFIG | {"num_hidden_layers": 4, "use_cache": False} | config
    return cls(cls.config_class(**settings)).eval()


@pytest.fixture
def tokens():
    return torch.arange(9)[None]


def owners(plan, model):
    """Return the device of every parameter, by the plan's own segments."""
    found = {}
    for segment in split_of(plan).segments:
        for module in modules_of(segment):
            found |= {f"{module}.{name}": segment.device for name, _ in model.get_submodule(module).named_parameters()}
    assert found.keys() == dict(model.named_parameters()).keys()
    return found


@pytest.mark.parametrize("class_name", CLASSES)
def test_classes_have_the_modules(class_name):
    with torch.device("meta"):
        model = build(class_name)
    plan = split_plan([3, 6], model=tiny_model(class_name=class_name))
    pytest.importorskip("accelerate").utils.check_device_map(model, json.loads(export_plan(plan, "accelerate").text))
    owners(plan, model)


@pytest.mark.parametrize("cuts", CUTS)
def test_accelerate_places_what_the_plan_places(cuts, tokens, tmp_path):
    """Without accelerators one stage is on the CPU and the others on the disk, one stage after the other."""
    accelerate = pytest.importorskip("accelerate")
    plan, model = split_plan(cuts), build()
    mapping = json.loads(export_plan(plan, "accelerate").text)
    expected, where = model(tokens).logits, owners(plan, model)
    for index, device in enumerate(export_plan(plan, "accelerate").devices):
        on_disk = {module: "cpu" if place == index else "disk" for module, place in mapping.items()}
        folder = tmp_path / device
        placed = accelerate.dispatch_model(build(), device_map=on_disk, main_device="cpu", offload_dir=folder)
        here = {name for name, value in placed.named_parameters() if value.device.type == "cpu"}
        assert here == {name for name, owner in where.items() if owner == device}
        assert torch.equal(placed(tokens).logits, expected)


def test_accelerate_refuses_a_map_with_a_hole():
    accelerate = pytest.importorskip("accelerate")
    mapping = json.loads(export_plan(split_plan([3, 6]), "accelerate").text)
    del mapping["model.layers.2"]
    with pytest.raises(ValueError, match=r"model\.layers\.2"):
        accelerate.utils.check_device_map(build(), mapping)


def test_transformers_loads_by_the_map(tokens, tmp_path):
    pytest.importorskip("accelerate")
    model = build()
    model.save_pretrained(tmp_path / "model")
    text = export_plan(split_plan([3, 6]), "accelerate", {"d0": "cpu", "d1": "disk"}).text
    loaded = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "model", device_map=json.loads(text), offload_folder=tmp_path / "offload"
    )
    assert loaded.hf_device_map == json.loads(text)
    first = ("model.embed_tokens.", "model.layers.0.", "model.layers.1.")
    assert {name for name, value in loaded.named_parameters() if not value.is_meta} == {
        name for name, _ in model.named_parameters() if name.startswith(first)
    }
    assert torch.equal(loaded.eval()(tokens).logits, model(tokens).logits)


def pipe_of(plan, model, tokens):
    """Let torch cut a model at the points of the file."""
    from torch.distributed.pipelining import SplitPoint, pipeline

    document = json.loads(export_plan(plan, "torch-pipelining").text)
    points = {name: SplitPoint[point] for name, point in document["split_spec"].items()}
    pipe = pipeline(model, mb_args=(tokens,), split_spec=points)
    assert pipe.num_stages == len(document["ranks"]) == len(plan.cuts)
    return pipe, document["ranks"]


def test_torch_pipelining_cuts_where_the_plan_cuts(tokens):
    plan, model = split_plan([1, 4, 6]), build()
    where = owners(plan, model)
    pipe, ranks = pipe_of(plan, model, tokens)
    stages = {name: ranks[k] for k in range(3) for name, _ in pipe.get_stage_module(k).named_parameters()}
    assert stages == where


class Plain(torch.nn.Module):
    """Blocks without attention under the names of transformers: what torch cuts of them, it can run too."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(61, 8)
        self.model.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.model.norm, self.lm_head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 61)

    def forward(self, tokens):
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = x + layer(x).tanh()
        return self.lm_head(self.model.norm(x))


@pytest.mark.parametrize("cuts", [*CUTS[:3], [1, 5, 6]])
def test_torch_pipelining_computes_the_same(cuts, tokens):
    model = Plain()
    expected = model(tokens)
    pipe, ranks = pipe_of(split_plan(cuts), model, tokens)
    assert torch.equal(pipe(tokens)[0], expected)
    held = [[name for name, _ in pipe.get_stage_module(k).named_parameters()] for k in range(len(ranks))]
    blocks = [sum(".layers." in name and name.endswith("weight") for name in names) for names in held]
    assert np.cumsum(blocks).tolist() == [min(cut - 1, 4) for cut in cuts]


@pytest.mark.parametrize("cuts", CUTS)
def test_ranks_of_transformers_compute_the_whole(cuts, tokens):
    """Run each rank by its own modules and range alone, in the order of the configuration's own pipeline plan."""
    model = build()
    order = list(model.config.base_model_pp_plan)
    assert order == ["embed_tokens", "layers", "norm"]
    x, used = tokens, 0
    for rank in json.loads(export_plan(split_plan(cuts), "transformers").text)["ranks"]:
        start, stop = rank["layers"]
        assert start in (used, stop)
        positions = torch.arange(tokens.shape[1])[None]
        if "model.embed_tokens" in rank["modules"]:
            x = model.model.embed_tokens(x)
        tables = model.model.rotary_emb(x, positions)
        for layer in model.model.layers[start:stop]:
            x = layer(x, position_embeddings=tables)
            used += 1
        if "model.norm" in rank["modules"]:
            x = model.lm_head(model.model.norm(x))
    assert used == 4
    torch.testing.assert_close(x, model(tokens).logits)
