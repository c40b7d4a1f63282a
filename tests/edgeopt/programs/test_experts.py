"""Experts on several parties: tokens of a single process, copies that take turns, weights of one's own experts only."""

from __future__ import annotations

from collections import Counter

import pytest

from edgeopt import planner
from edgeopt.plan import Plan
from edgeopt.strategies.experts import Experts
from edgeopt_solvers import Result, Status
from tests.edgeopt.expert_cases import architecture, in_bits, mixture, problem

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

FAMILIES = ["MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"]


def placed(rows, *, trunk="desk", source="desk", batch=1, model=None, formats=None) -> Plan:
    """A plan with these devices and shares for the experts of every layer, stored in these formats."""
    model = model or mixture(layers=2, num_active=2)
    weights = {} if formats is None else {"weights": formats}
    case = problem(
        model=model,
        workload={"kind": "text", "prompt_tokens": 7, "new_tokens": 5, "batch": batch},
        constraints={"experts": {"trunk": trunk, **weights}, "source": source},
    )
    technique = Experts()
    names = [f"block.{i}" for i in range(2)]
    draft = planner.solve(roomy(case)).model_copy(
        update={
            "decisions": {"trunk": trunk, "experts": dict.fromkeys(names, rows), **weights},
            "problem": roomy(case),
        }
    )
    solution, instance = technique.solution(draft), technique.build(roomy(case))
    found = technique.evaluate(instance, solution)
    assert not found.violations
    result = Result(Status("optimal", True), found.objective, found.objective, solution, "exact", 0.0)
    return technique.plan(roomy(case), instance, result)


def roomy(case):
    return case.model_copy(update={"devices": [d.model_copy(update={"memory": 1e9}) for d in case.devices]})


APART = [{"desk": 1.0}, {"box": 1.0}, {"far": 1.0}, {"box": 1.0}]
COPIES = [{"desk": 0.3, "far": 0.7}, {"box": 1.0}, {"far": 0.5, "box": 0.5}, {"box": 1.0, "desk": 0.0}]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("rows", "trunk", "source", "batch"),
    [
        (APART, "desk", "desk", 1), (APART, "box", "desk", 3), (COPIES, "desk", "far", 6),
        ([{"desk": 1.0}] * 4, "desk", "box", 1), ([{"far": 1.0}] * 4, "desk", "desk", 1),
    ],
)  # fmt: skip
def test_tokens_are_those_of_one_process(family, rows, trunk, source, batch):
    from edgeopt.programs import reference
    from edgeopt.programs.parties import rehearse

    model = mixture(layers=2, num_active=3 if "2" in family else 2, family=family)
    plan = placed(rows, trunk=trunk, source=source, batch=batch, model=model)
    (tokens,), (expected,) = rehearse(plan, 1), reference(plan, 1)
    assert tokens.shape == (batch, 5)
    assert tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("rows", "formats", "batch"),
    [
        (APART, {"desk": "int8", "box": "int4", "far": "int4"}, 3), (APART, {"box": "int4"}, 1),
        (COPIES, {"desk": "int4", "far": "int8"}, 6),
    ],
)  # fmt: skip
def test_tokens_are_those_of_one_process_with_the_same_bits(family, rows, formats, batch):
    from edgeopt.programs import reference
    from edgeopt.programs.parties import rehearse

    model = in_bits(mixture(layers=2, num_active=3 if "2" in family else 2, family=family))
    plan = placed(rows, batch=batch, model=model, formats=formats)
    assert [stage.variant for stage in plan.stages] == [formats.get(stage.device) for stage in plan.stages]
    (tokens,), (expected,) = rehearse(plan, 1), reference(plan, 1)
    assert tokens.tolist() == expected.tolist()


def test_parties_hold_what_they_hold_in_their_own_bits():
    from edgeopt.programs import build
    from edgeopt.programs.quantised import QuantisedExperts, QuantisedLinear

    plan = placed(APART, model=in_bits(mixture(layers=2, num_active=2)), formats={"box": "int4"})
    box, far = (build(plan, (index,)) for index in (1, 2))
    assert all(isinstance(held._module, QuantisedExperts) for held in box._held.values())
    assert not any(isinstance(held._module, QuantisedExperts) for held in far._held.values())
    other = placed(APART, model=in_bits(mixture(layers=2, num_active=2)), formats={"desk": "int8"})
    trunk = build(other, (0,))._part
    assert isinstance(trunk.layers[0].self_attn.q_proj, QuantisedLinear)
    assert trunk.layers[0].mlp.gate.weight.dtype == torch.float32  # the router stays as it is


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_adds_up_to_the_same_bits(family):
    from edgeopt.profiles.model import Architecture
    from edgeopt.programs.experts import Shares, Spread
    from edgeopt.programs.language import build_model, model_config
    from edgeopt.programs.mixtures import HeldExperts, expert_layers
    from edgeopt.programs.parties import Links
    from edgeopt.programs.weights import RandomWeights, fill

    known = Architecture.model_validate(architecture(family, 1))
    model = build_model(known, model_config(known))
    whole = expert_layers(model)[0]
    holders = {rank: HeldExperts(whole, 0, own, RandomWeights(3), dtype=torch.float32) for rank, own in
               {0: [0, 3], 1: [1], 2: [2]}.items()}  # fmt: skip
    fill(model, RandomWeights(3), dtype=torch.float32)
    states = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))

    class Direct(Links):
        rank = 0
        answers: dict = {}  # noqa: RUF012

        def send(self, to, tensors, label=""):
            index = tensors[1].long()
            self.answers[to] = holders[to](tensors[2][index[1]], index[0])

        def receive(self, source):
            return [self.answers.pop(source)]

        def poll(self, source):
            return None

        def computing(self, stage, round_index=0):
            import contextlib

            return contextlib.nullcontext()

    from edgeopt.programs.experts import _Turn

    with torch.inference_mode():
        _, weights, chosen = model.model.layers[0].mlp.gate(states)
        spread = Spread(0, Shares([{0: 1.0}, {1: 1.0}, {2: 1.0}, {0: 1.0}]), holders[0])
        spread.turn = _Turn(Direct(), 0)
        with spread.turn:
            found = spread(states, chosen, weights)
        assert torch.equal(found, whole(states, chosen, weights))


def test_copies_serve_their_shares():
    from edgeopt.programs.experts import Shares

    shares = Shares([{0: 0.25, 1: 0.75}, {2: 1.0}])
    ranks = torch.cat([shares(torch.tensor([[0, 1]])) for _ in range(40)])
    assert Counter(ranks[:, 0].tolist()) == {0: 10, 1: 30}
    assert set(ranks[:, 1].tolist()) == {2}
    shares.reset()
    assert shares(torch.tensor([[0, 1]] * 40)).tolist() == ranks.tolist()


def test_parties_hold_their_own_experts_alone():
    from edgeopt.programs import build

    plan = placed(APART)
    assert [stage.elements for stage in plan.stages] == ["trunk and 2 experts", "4 experts", "2 experts"]
    party = build(plan, (1,))
    sizes = [p.shape[0] for held in party._held.values() for p in held._module.parameters()]
    assert sizes == [2, 2, 2, 2]
    with pytest.raises(ValueError, match=r"experts \[0\] are asked for"):
        party._held[0](torch.zeros(1, 16), torch.tensor([0]))
    trunk = build(plan, (0,))
    assert not any(p.dim() == 3 for p in trunk._part.layers[0].parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_published_and_fused_checkpoints_are_read_alike(family, tmp_path):
    from safetensors.torch import save_file

    from edgeopt.profiles.model import Architecture
    from edgeopt.programs.language import build_model, model_config
    from edgeopt.programs.weights import Checkpoint, RandomWeights, fill

    known = Architecture.model_validate(architecture(family, 1))
    model = fill(build_model(known, model_config(known)), RandomWeights(0), dtype=torch.float32)
    fused = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(fused, tmp_path / "fused.safetensors")
    model.save_pretrained(tmp_path / "published")
    published, one = Checkpoint(str(tmp_path / "published")), Checkpoint(str(tmp_path / "fused.safetensors"))
    for name, value in fused.items():
        assert torch.equal(one.read(name, value.shape), value)
        assert torch.equal(published.read(name, value.shape), value)
        if ".experts." in name:
            assert not any(key == name for key in published._files), "the library writes experts one by one"
            for source in (one, published, RandomWeights(0)):
                assert torch.equal(source.read(name, value.shape, [2, 0]), value[[2, 0]])


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_dense_layers_between_mixtures_stay_dense_in_a_part(family):
    from edgeopt.profiles.model import Architecture
    from edgeopt.programs.language import LanguagePart

    known = Architecture.model_validate(architecture(family, 4, mlp_only_layers=[2], decoder_sparse_step=1))
    part = LanguagePart(known, 2, 5, dtype=torch.float32, device=torch.device("cpu"), max_tokens=4)
    assert [hasattr(layer.mlp, "experts") for layer in part.layers] == [True, False, True]
