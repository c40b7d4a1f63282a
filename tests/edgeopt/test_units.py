"""Quantities: right ones are exact, wrong ones are refused with the way to write them, text gives every bit back."""

from __future__ import annotations

import logging
from fractions import Fraction as Rational

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from edgeopt import units

RATE = TypeAdapter(units.BytesPerSecond)
QUANTITIES = {
    name: getattr(units, name).__metadata__[0]
    for name in ("Seconds", "Bytes", "BytesPerSecond", "Flop", "FlopPerSecond", "Joules", "Watts", "NonNegativeBytes")
}


def read(name, text):
    return TypeAdapter(getattr(units, name)).validate_python(text, context={"from_file": True})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("BytesPerSecond", "50 Mbit/s", 6_250_000.0),
        ("BytesPerSecond", "100 MB/s", 100e6),
        ("BytesPerSecond", "1 Gbps", 125e6),
        ("BytesPerSecond", "8 megabit per second", 1e6),
        ("Bytes", "4 GiB", 4 * 2**30),
        ("Bytes", "4 GB", 4e9),
        ("Bytes", "1 Kibit", 128.0),
        ("FlopPerSecond", "3.5 TFLOP/s", 3.5e12),
        ("FlopPerSecond", "2 gigaflop/second", 2e9),
        ("Flop", "0.803 TFLOP", 803e9),
        ("Seconds", "1.1 ms", 0.0011),
        ("Seconds", "150us", 150e-6),
        ("Seconds", "2 min", 120.0),
        ("Joules", "1 Wh", 3600.0),
        ("Watts", "800 mW", 0.8),
        ("NonNegativeBytes", "0 B", 0.0),
        ("Bytes", "1e3 B", 1000.0),
    ],
)
def test_reads_numbers_with_units_exactly(name, text, value):
    assert read(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "message", "mend"),
    [
        ("BytesPerSecond", 50, "50 has no unit", "'50 Mbit/s'"),
        ("BytesPerSecond", "50", "50 has no unit", "'50 Mbit/s'"),
        ("Bytes", 4.5, "4.5 has no unit", "'4 GiB'"),
        ("BytesPerSecond", "50 MHz", "'MHz' measures something else", "'50 Mbit/s'"),
        ("BytesPerSecond", "50 MB", "'MB' measures something else", "'50 Mbit/s'"),
        ("FlopPerSecond", "3 TFLOPS", "unknown unit 'TFLOPS'", "'3 TFLOP/s'"),
        ("BytesPerSecond", "50 mbit/s", "counts thousandths", "'50 Mbit/s'"),
        ("BytesPerSecond", "50 MBit/s", "unknown unit 'MBit/s'", "'50 Mbit/s'"),
        ("Bytes", "8 gb", "unknown unit 'gb'", "'8 GB'"),
        ("Bytes", "-4 GiB", "is negative", "'4 GiB'"),
        ("Bytes", "0 B", "is zero", "'4 GiB'"),
        ("Seconds", float("nan"), "not a finite number", "'2 ms'"),
        ("Seconds", "inf", "not a finite number", "'2 ms'"),
        ("Seconds", "1e400 s", "not finite", "'2 ms'"),
        ("Seconds", "nan s", "a number and a unit are needed", "'2 ms'"),
        ("Seconds", "soon", "a number and a unit are needed", "'2 ms'"),
        ("Seconds", True, "is not a duration", "'2 ms'"),
        ("Seconds", None, "an empty value is not a duration", "'2 ms'"),
        ("Seconds", "2 s**9**9**9", "unknown unit", "'2 ms'"),
        ("Seconds", "2 __import__", "a number and a unit are needed", "'2 ms'"),
        ("Seconds", "2" * 10_000 + " s", "a number and a unit are needed", "'2 ms'"),
    ],
)
def test_refuses_with_the_value_and_the_right_form(name, text, message, mend):
    with pytest.raises(ValidationError) as refused:
        read(name, text)
    context = refused.value.errors()[0]["ctx"]
    assert message in context["message"]
    assert mend in context["mend"]


def test_python_code_gives_si_floats_and_files_may_not():
    assert RATE.validate_python(12.5) == 12.5
    for wrong in (-1.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            RATE.validate_python(wrong)
    with pytest.raises(ValidationError, match="no unit"):
        RATE.validate_json("12.5")


@given(
    st.sampled_from(sorted(QUANTITIES)), st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
)
def test_text_gives_the_same_float_back(name, value):
    quantity = QUANTITIES[name]
    assert quantity.parse(quantity.format(value)) == value


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("Bytes", 8 * 2.0**30, "8 GiB"),
        ("Bytes", 2e9, "2 GB"),
        ("Seconds", 1e-5, "10 us"),
        ("NonNegativeBytes", 0.0, "0 B"),
    ],
)
def test_text_is_short(name, value, text):
    assert QUANTITIES[name].format(value) == text


class TestTableAgainstPint:
    """The table that spares the import of pint says what pint says."""

    def test_own_registry_agrees_on_every_entry(self):
        for unit, entry in units._COMMON.items():
            assert units._pint_factor(unit) == entry, unit

    def test_pints_own_definitions_agree_where_they_exist(self):
        pint = pytest.importorskip("pint")
        logging.getLogger("pint").setLevel(logging.ERROR)  # it warns that flop is redefined
        registry = pint.UnitRegistry(non_int_type=Rational)
        canonical = {"s": "second", "B": "byte", "B/s": "byte/second", "J": "joule", "W": "watt"}
        checked = 0
        for unit, (symbol, factor) in units._COMMON.items():
            if symbol in canonical:
                assert registry.Quantity(Rational(1), unit).to(canonical[symbol]).magnitude == factor, unit
                checked += 1
        assert checked > 40

    def test_unknown_and_foreign_units(self):
        assert units.unit_factor("parsec") is None
        assert units.unit_factor("B*s") is None
        assert units.unit_factor("s/B") == ("", Rational(0))


@pytest.mark.parametrize("value", [0, 1.5, -0.1, float("nan"), True, "0.5", None])
def test_a_fraction_lies_above_zero_and_at_most_at_one(value):
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(units.Fraction).validate_python(value)
    assert "0.8" in refused.value.errors()[0]["ctx"]["mend"]


def test_schema_pattern_accepts_what_is_written():
    import re

    for name, quantity in QUANTITIES.items():
        schema = TypeAdapter(getattr(units, name)).json_schema()
        assert schema["type"] == "string"
        for text in (*quantity.examples, quantity.format(1.25e-7), quantity.format(3.3e15)):
            assert re.search(schema["pattern"], text), (name, text)
