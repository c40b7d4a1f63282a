"""Reading text: values, lines, and what a hostile file is refused for, fast."""

from __future__ import annotations

import contextlib
import io
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from edgeopt.errors import InputError
from edgeopt.profiles.reader import MAX_BYTES, field_name, parse_text, read_document
from edgeopt.profiles.writer import parse_own, to_yaml

TEXT = """\
# a comment
name: x
nested: {b: [1, 2.5, 1e-5], c: "5"}
items:
  - empty: ~
    yes: no
  - [true, 0x10, .inf]
block: |
  hello
"""
KEYS = st.text(min_size=1, max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30)
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)


def test_values_and_lines():
    data, lines = parse_text(TEXT, Path("x.yaml"))
    assert data == {
        "name": "x",
        "nested": {"b": [1, 2.5, 1e-5], "c": "5"},
        "items": [{"empty": None, "yes": "no"}, [True, "0x10", float("inf")]],
        "block": "hello\n",
    }
    assert lines["name",] == 2
    assert lines["nested", "b", 2] == 3
    assert lines["items", 0, "yes"] == 6
    assert lines["items", 1] == 7


@pytest.mark.parametrize(
    ("text", "line", "message", "mend"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is already given in line 1", "keep one"),
        ("a: {b: 1,\n b: 2}\n", 2, "'b' is already given in line 1", "keep one"),
        ("a: &x [1]\nb: *x\n", 2, "aliases", "write the value out"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "tag", "remove it"),
        ("a: !custom 1\n", 1, "tag", "remove it"),
        ("x: [1,\ny: 3: 4]\n", 2, "not valid YAML", "indentation"),
        ("a: 1\n b: 2\n", 2, "not valid YAML", "indentation"),
        ("a: 1\n---\nb: 2\n", 2, "more than one document", "keep one"),
        ("? [1, 2]\n: 3\n", 1, "a key is a mapping or a list", "plain text"),
        ("a: 1\nb: \x07\n", 2, "not valid YAML", "control characters"),
        ("- a\n- b\n", 1, "the file is a list, not a mapping", "key: value"),
        ("just text\n", 1, "the file is a single value, not a mapping", "key: value"),
        ("", 1, "the file is empty, not a mapping", "key: value"),
    ],
)
def test_refuses_with_line_and_mend(tmp_path, text, line, message, mend):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_document(path)
    (finding,) = refused.value.findings
    assert message in finding.message
    assert mend in finding.mend
    assert finding.line == line
    assert finding.file.endswith("p.yaml")


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000_000, "larger than 8 MiB"),
        ("[" * 8_000_000, "more than 1 MiB"),
        ("[" * 1_000_000, "nested more than 40 levels"),
        ('{"a":' * 200_000, "nested more than 40 levels"),
        ("a: [" + "[]," * 300_000 + "]", "more than 50000 values"),
        (BOMB, "aliases"),
    ],
    ids=["100 MB of brackets", "8 MB", "1 MB", "deep mappings", "many values", "alias bomb"],
)
def test_hostile_files_are_refused_fast(tmp_path, content, message, suffix):
    path = tmp_path / f"p{suffix}"
    path.write_text(content)
    start = time.perf_counter()
    with pytest.raises(InputError, match=message):
        read_document(path)
    assert time.perf_counter() - start < 20  # about 2 s at worst on an idle machine


def test_refuses_what_is_no_text_file(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"a: 1\nb: \xff\xfe")
    with pytest.raises(InputError, match=r"binary.yaml:2: the file is not UTF-8 text"):
        read_document(tmp_path / "binary.yaml")
    with pytest.raises(InputError, match="this is a folder"):
        read_document(tmp_path)
    with pytest.raises(InputError, match="there is no such file"):
        read_document(tmp_path / "none.yaml")


def test_json_is_read_fast_and_its_lines_are_known(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{\n  "a": 1,\n  "b": {"c": [1, 2]}\n}\n')
    document = read_document(path)
    assert document.data == {"a": 1, "b": {"c": [1, 2]}}
    assert document.line(("b", "c", 1)) == 3
    path.write_text('{"a": 1,\n"a": 2}')
    with pytest.raises(InputError, match=r"p.json:2: a: the key 'a' is already given in line 1"):
        read_document(path)


def test_the_size_limit_is_on_bytes(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"a": "x" * (MAX_BYTES - 20)}))
    assert len(read_document(path).data["a"]) == MAX_BYTES - 20


def test_field_names():
    assert field_name(("devices", 1, "power", "busy")) == "devices[1].power.busy"
    assert field_name(()) == ""


@given(st.dictionaries(KEYS, DATA, max_size=5))
def test_own_form_reads_back_by_three_parsers(data):
    text = to_yaml(data)
    assert parse_text(text, Path("x.yaml"))[0] == (data or None)
    with contextlib.suppress(ValueError):  # rare text is left to the general parser
        assert parse_own(text) == data
    assert (YAML(typ="safe", pure=True).load(io.StringIO(text)) or {}) == data


@pytest.mark.parametrize(
    "text", ["a: b: c", "a:\n    b: 1", "a: 1\na: 2", "a: *x", "a: yes", 'a: {"b": 1, "b": 2}', "- 1"]
)
def test_the_fast_parser_leaves_other_forms_alone(text):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_own(text)
