"""Every mistake in a model file is named with its field and line, and with the way to mend it."""

from __future__ import annotations

import pytest

from edgeopt.errors import InputError
from edgeopt.profiles import load_model, validate
from tests.edgeopt.profiles.cases import DIFFUSION, LANGUAGE


@pytest.mark.parametrize(
    ("text", "change", "field", "line", "message", "mend"),
    [
        (LANGUAGE, ("layers:\n", "layers: []\nrest:\n"), "layers", 7, "is empty", "at least 1"),
        (
            LANGUAGE,
            ("name: block", "name: embed"),
            "layers[1].name",
            9,
            "a second layer is called 'embed'",
            "another name",
        ),
        (LANGUAGE, ("causal_lm", "causal"), "family", 4, "'causal' is not a family", "causal_lm, diffusion"),
        (LANGUAGE, ("family: causal_lm\n", ""), "family", 1, "is missing", "causal_lm, diffusion"),
        (LANGUAGE, ("source: numbers made for a test\n", ""), "source", 1, "is missing", "add `source:`"),
        (
            LANGUAGE,
            ("source: numbers made for a test", "source: ''"),
            "source",
            3,
            "is empty",
            "where the number comes from",
        ),
        (LANGUAGE, ("count: 2", "count: 2.5"), "layers[1].count", 9, "'2.5'", "integer"),
        (DIFFUSION, ("first: small", "first: smal"), "quality.first", 17, "no variant 'smal'", "did you mean 'small'?"),
        (DIFFUSION, ("first: small", "first: large"), "quality.second", 18, "also the first variant", "two variants"),
        (DIFFUSION, ("[10, 11, 20]", "[10, 11]"), "quality.quality", 20, "has 2 values for 3 fractions", "one value"),
        (
            DIFFUSION,
            ("[0, 0.5, 1]", "[0, 0.5, 0.5]"),
            "quality.fraction",
            19,
            "does not increase from 0 to 1",
            "end with 1",
        ),
        (
            DIFFUSION,
            ("[0, 0.5, 1]", "[0.1, 0.5, 1]"),
            "quality.fraction",
            19,
            "does not increase from 0 to 1",
            "begin with 0",
        ),
        (DIFFUSION, ("form: table", "form: tabel"), "quality.form", 15, "'tabel' is unknown", "'table'"),
        (DIFFUSION, ("metric: FID", "metrik: FID"), "quality.metrik", 16, "unknown key", "did you mean 'metric'?"),
        (DIFFUSION, ("  large:", "  common:"), "variants.common", 12, "'common' is what", "call the variant otherwise"),
    ],
)
def test_mistakes_in_a_model(tmp_path, text, change, field, line, message, mend):
    path = tmp_path / "model.yaml"
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    finding = next(finding for finding in validate(path) if finding.field == field)
    assert message in finding.message
    assert mend in finding.mend
    assert finding.line == line


def test_additive_quality_speaks_of_known_variants_and_all_steps(tmp_path):
    head, _, _ = DIFFUSION.partition("quality:")
    additive = (
        "quality:\n  {form: additive, metric: FID, base: 1, steps: 2, source: a test,\n"
        "   loss: {large: [0], tiny: [1, 2]}}\n"
    )
    path = tmp_path / "model.yaml"
    path.write_text(head + additive)
    with pytest.raises(InputError) as refused:
        load_model(path)
    text = str(refused.value)
    assert "quality.loss.large: has 1 losses for 2 steps; give one loss per step: 2" in text
    assert "quality.loss.tiny: there is no variant 'tiny'" in text
