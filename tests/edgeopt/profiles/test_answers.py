"""Answer traces: what is written is read, and what does not fit is refused with field, line and mend."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.errors import InputError
from edgeopt.profiles.answers import read_answers
from tests.edgeopt.answer_cases import family, trace


@pytest.mark.parametrize("lengths", [True, False])
def test_a_trace_that_is_written_is_read(tmp_path, lengths):
    recorded = trace(lengths=lengths)
    read = read_answers(family(tmp_path, recorded))
    assert read.models == recorded.models
    for name in ("query", "classes", "splits", "correct", "confidence", "prompt_tokens", "tokens"):
        assert np.array_equal(getattr(read, name), getattr(recorded, name)), name
    fit, held_out = read.part("fit"), read.part("held-out")
    assert len(fit) + len(held_out) == len(read)
    assert held_out.query.tolist() == [3, 7, *range(11, 40, 4)]
    assert np.array_equal(held_out.correct, recorded.correct[recorded.held_out])


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("query,", "number,", "1: model.answers.trace: column 'query' is missing; record the trace anew"),
        (",confidence:medium", ",confidence", "column 'confidence:medium' is missing"),
        (",correct:small", ",correct:smal", "column 'correct:smal' speaks of no model of the family; did you mean"),
        (",tokens:small", ",correct:big", "column 'correct:big' is there twice; keep one of them"),
        ("big\n0,odd,fit,0,", "big\n0,odd,fit,2,", ":2: model.answers.trace: correct:small is '2'; write 0 or 1"),
        ("\n1,even,fit,", "\n0,even,fit,", ":3: model.answers.trace: query 0 is there twice; keep one row per query"),
        ("\n1,even,fit,", "\n1,even,test,", ":3: model.answers.trace: split is 'test'; write fit, held-out or train"),
        (",fit,", ",held-out,", "no query has the split 'fit'; give some queries `fit`"),
        ("\n1,even,fit,", "\n1,even,fit,1,", ":3: model.answers.trace: has 14 values for 13 columns"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, old, new, sentence):
    model = family(tmp_path)
    path = tmp_path / "answers.csv"
    text = path.read_text()
    assert old in text
    count = -1 if old == ",fit," else 1
    path.write_text(text.replace(old, new, count))
    with pytest.raises(InputError) as refused:
        read_answers(model)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("confidence:big", "1.2", "confidence:big is '1.2'; write a number from 0 to 1"),
        ("confidence:big", "nan", "confidence:big is 'nan'"),
        ("confidence:small", "", "confidence:small is ''"),
        ("prompt", "0", "prompt is '0'; write a whole number of 1 or more"),
        ("tokens:big", "2.5", "tokens:big is '2.5'; write a whole number of 1 or more"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, column, value, sentence):
    model = family(tmp_path)
    path = tmp_path / "answers.csv"
    lines = path.read_text().splitlines()
    row = lines[5].split(",")
    row[lines[0].split(",").index(column)] = value
    lines[5] = ",".join(row)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as refused:
        read_answers(model)
    assert f"{path}:6: model.answers.trace: {sentence}" in str(refused.value)


def test_a_model_without_a_column_and_a_file_that_is_missing_are_refused(tmp_path):
    model = family(tmp_path)
    narrow = model.model_copy(update={"drafts": {"small": model.drafts["small"]}})
    with pytest.raises(InputError, match="'correct:medium' speaks of no model of the family"):
        read_answers(narrow)
    wide = model.model_copy(update={"drafts": {**model.drafts, "tiny": model.drafts["small"]}})
    with pytest.raises(InputError, match="'correct:tiny' is missing; record the answers of 'tiny' too, or take it out"):
        read_answers(wide)
    (tmp_path / "answers.csv").unlink()
    with pytest.raises(InputError, match="cannot be read: No such file or directory; give a CSV file"):
        read_answers(model)
    with pytest.raises(InputError, match="'big' has no recorded answers; add `answers:"):
        read_answers(model.model_copy(update={"answers": None}))
