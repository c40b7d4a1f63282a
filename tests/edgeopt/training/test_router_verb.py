"""`edgeopt profile router`: what it writes is read again and plans; what it cannot do it says."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.cli import main
from edgeopt.files import write_whole
from edgeopt.profiles import dump_yaml, load_model
from edgeopt.profiles.answers import read_answers
from tests.edgeopt.answer_cases import family
from tests.edgeopt.strategies.test_router import recorded


def test_a_router_is_trained_on_a_trace_of_ones_own(tmp_path, capsys):
    trace = recorded()
    trace.splits[:] = np.where(trace.splits == "train", "fit", trace.splits)
    write_whole(tmp_path / "big.yaml", dump_yaml(family(tmp_path, trace)))
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "routed.yaml"
    words = ["--train-share", "0.5", "--features", "1"]
    assert main(["profile", "router", str(tmp_path / "big.yaml"), "-o", str(out), *words]) == 0
    assert "trace: routed-answers.csv" in out.read_text()
    model = load_model(str(out))
    assert model.answers.router.features == ["hard"]
    known = read_answers(model)
    assert (known.splits == "train").sum() == pytest.approx(150, abs=1)
    assert np.array_equal(known.correct, trace.correct)
    capsys.readouterr()


def test_what_it_cannot_train_is_refused(tmp_path, capsys):
    write_whole(tmp_path / "big.yaml", dump_yaml(family(tmp_path)))
    for words, sentence in (
        ([str(tmp_path / "big.yaml")], "-o: is missing"),
        (["digits", "-o", str(tmp_path / "x.yaml")], "'digits' answers no queries"),
        ([str(tmp_path / "big.yaml"), "-o", str(tmp_path / "x.yaml")], "have the split 'train'"),
        (["llama-3.2-1b", "-o", str(tmp_path / "x.yaml")], "has no recorded answers"),
    ):
        assert main(["profile", "router", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()
