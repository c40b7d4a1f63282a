"""The JSON Schemas are valid, up to date, and say what the loader says."""

from __future__ import annotations

import json

import pytest

from edgeopt.profiles import json_schema
from edgeopt.profiles.library import KINDS, roots
from edgeopt.profiles.reader import read_document

jsonschema = pytest.importorskip("jsonschema")

LIBRARY = roots()[-1]


def files(kind):
    return sorted((LIBRARY / f"{kind}s").glob("*.yaml"))


@pytest.mark.parametrize("kind", KINDS)
class TestSchema:
    def test_is_a_schema_and_accepts_the_library(self, kind):
        schema = json_schema(kind)
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        assert files(kind)
        for path in files(kind):
            errors = [
                f"{path.name}: {error.json_path}: {error.message}"
                for error in validator.iter_errors(read_document(path).data)
            ]
            assert errors == []

    def test_file_is_up_to_date(self, kind):
        stored = (LIBRARY / "schema" / f"{kind}.json").read_text(encoding="utf-8")
        mend = f"run: edgeopt profiles schema {kind} > profiles/schema/{kind}.json"
        assert json.loads(stored) == json_schema(kind), mend

    def test_every_file_names_it_in_its_first_line(self, kind):
        for path in files(kind):
            first = path.read_text(encoding="utf-8").splitlines()[0]
            assert first == f"# yaml-language-server: $schema=../schema/{kind}.json", path.name

    def test_refuses_unknown_keys_and_bare_numbers(self, kind):
        validator = jsonschema.Draft202012Validator(json_schema(kind))
        data = read_document(files(kind)[0]).data
        assert not validator.is_valid({**data, "surprise": 1})
        wrong = {
            "device": {"memory": 8},
            "model": {"latent": 8, "token": 8},
            "network": {"default": {"rate": 5, "latency": 0}},
        }
        assert not validator.is_valid({**data, **wrong.get(kind, {"constraints": {"deadline": 5}})})


def test_a_problem_may_name_change_repeat_and_spell_out():
    validator = jsonschema.Draft202012Validator(json_schema("problem"))
    device = read_document(files("device")[0]).data
    spelled = {key: value for key, value in device.items() if key not in ("kind", "source", "sources")}
    problem = {
        "name": "p",
        "model": "llama-3.1-8b",
        "workload": {"prompt_tokens": 1, "new_tokens": 1},
        "network": {"default": {"rate": "1 Gbit/s", "latency": "1 ms"}},
    }
    for entry in (
        "a",
        "./a.yaml",
        {"profile": "a", "count": 2, "power": {"busy": "5 W"}},
        spelled,
        {**spelled, "count": 2},
    ):
        assert validator.is_valid({**problem, "devices": [entry]}), entry
    for entry in (5, {"profile": "a", "count": 0}, {"name": "only"}, {"profile": "a", "power": {"busy": 5}}):
        assert not validator.is_valid({**problem, "devices": [entry]}), entry
    assert not validator.is_valid({**problem, "devices": []})
