"""Quantities: text with a unit in files ("50 Mbit/s"), SI floats in code.

A quantity in a file is always a number and a unit; a bare number says nothing about what it counts, so it is refused.
Prefixes are exact: ``k M G T`` are powers of 1000, ``Ki Mi Gi Ti`` powers of 1024. pint knows the units; the
spellings that profiles use every day are looked up in a table first (importing pint takes longer than reading a
problem), and a test holds that table against pint. Python code may give plain floats in SI units; only files must
spell the unit.

Values are computed as exact fractions and rounded once, so that "1.1 ms" is the float ``0.0011``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction as Rational
from functools import cache, lru_cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import PydanticCustomError, core_schema

__all__ = [
    "SECONDS_PER", "Bytes", "BytesPerSecond", "Decibel", "DecibelMilliwatt", "DecibelMilliwattPerHertz", "Flop",
    "FlopPerSecond", "Fraction", "Hertz", "Joules", "Level", "Metres", "NonNegativeBytes", "NonNegativeFlop",
    "NonNegativeSeconds", "Quantity", "RequestsPerSecond", "Seconds", "TimeUnit", "Watts", "unit_factor",
]  # fmt: skip

_QUANTITY = re.compile(r"([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*([A-Za-zµμ].*)", re.ASCII)
_NUMBER = re.compile(
    r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\.?(?:inf(?:inity)?|nan)", re.ASCII | re.IGNORECASE
)
# One unit, or one unit per another: nothing else is needed, and pint is not handed arithmetic from files.
_UNIT = re.compile(r"[A-Za-zµμ]{1,24}(?:\s*(?:/|\bper\b)\s*[A-Za-zµμ]{1,24})?")

_PREFIXES = {
    "n": Rational(1, 10**9), "u": Rational(1, 10**6), "µ": Rational(1, 10**6), "m": Rational(1, 10**3), "": Rational(1),
    "k": Rational(10**3), "M": Rational(10**6), "G": Rational(10**9), "T": Rational(10**12), "P": Rational(10**15),
    "Ki": Rational(2**10), "Mi": Rational(2**20), "Gi": Rational(2**30), "Ti": Rational(2**40),
}  # fmt: skip
_BASES = {
    "s": ("s", Rational(1), ("n", "u", "µ", "m", "")),
    "bit": ("B", Rational(1, 8), ("", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti")),
    "B": ("B", Rational(1), ("", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti")),
    "FLOP": ("FLOP", Rational(1), ("", "k", "M", "G", "T", "P")),
    "flop": ("FLOP", Rational(1), ("", "k", "M", "G", "T", "P")),
    "J": ("J", Rational(1), ("m", "", "k", "M")),
    "W": ("W", Rational(1), ("m", "", "k")),
    "Hz": ("Hz", Rational(1), ("", "k", "M", "G")),
    "m": ("m", Rational(1), ("", "k")),
}
_COMMON: dict[str, tuple[str, Rational]] = {}
for _base, (_dimension, _factor, _allowed) in _BASES.items():
    for _prefix in _allowed:
        _COMMON[_prefix + _base] = (_dimension, _PREFIXES[_prefix] * _factor)
        if _dimension in ("B", "FLOP"):
            _COMMON[f"{_prefix}{_base}/s"] = (f"{_dimension}/s", _PREFIXES[_prefix] * _factor)
for _per, _seconds in (("s", 1), ("min", 60), ("h", 3600)):
    _COMMON[f"requests/{_per}"] = ("requests/s", Rational(1, _seconds))

# All that pint has to know. Its own list has `bit` without dimension, which would let "50 MHz" pass for a data rate,
# and hundreds of units that a typing error could hit.
_DEFINITIONS = [
    "nano- = 1e-9 = n-", "micro- = 1e-6 = µ- = μ- = u-", "milli- = 1e-3 = m-",
    "kilo- = 1e3 = k-", "mega- = 1e6 = M-", "giga- = 1e9 = G-",
    "tera- = 1e12 = T-", "peta- = 1e15 = P-", "exa- = 1e18 = E-",
    "kibi- = 1024 = Ki-", "mebi- = 1048576 = Mi-", "gibi- = 1073741824 = Gi-", "tebi- = 1099511627776 = Ti-",
    "second = [time] = s = sec", "minute = 60 * second = min", "hour = 60 * minute = h = hr", "day = 24 * hour = d",
    "bit = [information]", "byte = 8 * bit = B", "bps = bit / second",
    "flop = [computation] = FLOP", "request = [request]",
    "joule = [energy] = J", "watt = joule / second = W",
    "watt_hour = watt * hour = Wh", "hertz = 1 / second = Hz", "metre = [length] = m",
]  # fmt: skip


@cache
def _registry() -> Any:
    import pint

    registry = pint.UnitRegistry(None, non_int_type=Rational)
    registry.load_definitions(_DEFINITIONS)
    return registry


@cache
def _dimensions() -> dict[Any, tuple[str, Any]]:
    registry = _registry()
    canonical = {
        "s": "second",
        "B": "byte",
        "B/s": "byte/second",
        "FLOP": "flop",
        "FLOP/s": "flop/second",
        "J": "joule",
        "W": "watt",
        "Hz": "hertz",
        "m": "metre",
        "requests/s": "request/second",
    }
    units = {symbol: registry.parse_units(text) for symbol, text in canonical.items()}
    return {unit.dimensionality: (symbol, unit) for symbol, unit in units.items()}


@cache
def _pint_factor(unit: str) -> tuple[str, Rational] | None:
    registry = _registry()
    try:
        parsed = registry.parse_units(re.sub(r"\bper\b", "/", unit))
    except Exception:  # pint raises many kinds, all of them meaning that this is no unit
        return None
    known = _dimensions().get(parsed.dimensionality)
    if known is None:
        return ("", Rational(0))
    symbol, canonical = known
    return symbol, Rational(registry.Quantity(Rational(1), parsed).to(canonical).magnitude)


def unit_factor(unit: str) -> tuple[str, Rational] | None:
    """Look up a unit.

    Parameters
    ----------
    unit
        As written, for example ``Mbit/s``.

    Returns
    -------
    tuple of str and Fraction, or None
        The SI symbol of its dimension, ``s B B/s FLOP FLOP/s J W Hz m requests/s`` (empty: another one), and how
        many of these it is; None when there is no such unit.
    """
    found = _COMMON.get(unit)
    if found is None and _UNIT.fullmatch(unit):
        found = _pint_factor(unit)
    return found


def _refuse(message: str, mend: str) -> PydanticCustomError:
    return PydanticCustomError("quantity", "{message}; {mend}", {"message": message, "mend": mend})


@dataclass(frozen=True, slots=True)
class Quantity:
    """A dimension and what values it may take; annotates ``float`` fields.

    Parameters
    ----------
    noun
        What it is called in messages.
    unit
        SI symbol, the unit of the float.
    examples
        Right ways to write it; the first appears in messages.
    zero
        Whether zero is allowed.
    zero_mend
        What to do instead of writing zero.
    """

    noun: str
    unit: str
    examples: tuple[str, ...]
    zero: bool = False
    zero_mend: str = ""

    def parse(self, text: str) -> float:
        """Return the SI value of ``text``; raises ``ValueError`` naming the value and an example of the right form."""
        mend = f"write for example '{self.examples[0]}'"
        text = text.strip()
        match = _QUANTITY.fullmatch(text) if len(text) <= 100 else None
        if match is None:
            if _NUMBER.fullmatch(text):
                raise self._bare(text)
            raise _refuse(f"'{text[:60]}' is not {self.noun}: a number and a unit are needed", mend)
        number, unit = match[1], match[2].strip()
        found = unit_factor(unit)
        if found is None:
            near = _near_unit(unit, self.unit)
            hint = f"write '{number} {near}'" if near else mend
            raise _refuse(f"'{text}' has an unknown unit '{unit}'", hint)
        symbol, factor = found
        if symbol != self.unit:
            raise _refuse(f"'{text}' is not {self.noun}: '{unit}' measures something else", mend)
        if factor < Rational(1, 8) and symbol not in ("s", "J", "W", "m", "requests/s"):
            # "50 mbit/s" says millibit; nobody means it, and it would be wrong by a factor of a billion.
            raise _refuse(
                f"'{text}' counts thousandths ('m' is milli)",
                f"write '{number} {unit[0].upper()}{unit[1:]}' for millions",
            )
        try:
            value = float(Rational(Decimal(number)) * factor)
        except OverflowError:
            value = math.inf
        return self.check(value, text)

    def format(self, value: float) -> str:
        """Return text that parses back to exactly ``value``, in the unit that makes it shortest."""
        return _format(float(value), self.unit)

    def check(self, value: float, text: str) -> float:
        """Return ``value`` if it is finite and has the right sign."""
        mend = f"write for example '{self.examples[0]}'"
        if not math.isfinite(value):
            raise _refuse(f"'{text}' is not finite", mend)
        if value < 0 or (value == 0 and not self.zero):
            rule = "negative" if value < 0 else "zero"
            mend = self.zero_mend or mend if value == 0 else mend
            raise _refuse(
                f"'{text}' is {rule}; {self.noun} must be {'zero or more' if self.zero else 'positive'}", mend
            )
        return value

    def _bare(self, text: str) -> PydanticCustomError:
        if text.strip("+-.").lower() in ("nan", "inf", "infinity"):
            return _refuse(f"{text} is not a finite number with a unit", f"write for example '{self.examples[0]}'")
        return _refuse(f"{text} has no unit", f"say which, for example '{self.examples[0]}'")

    def _validate(self, value: Any, info: ValidationInfo) -> float:
        if isinstance(value, str):
            return self.parse(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if info.mode == "json" or (info.context or {}).get("from_file"):
                raise self._bare(str(value))
            return self.check(float(value), f"{value} {self.unit}")
        raise _refuse(f"{_brief(value)} is not {self.noun}", f"write for example '{self.examples[0]}'")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(self.format, when_used="json-unless-none"),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "string",
            "description": f"{self.noun}: a number and a unit",
            "pattern": r"^\s*\+?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,3})?\s*[A-Za-zµμ]+(\s*(/|per)\s*[A-Za-zµμ]+)?\s*$",
            "examples": list(self.examples),
        }


@dataclass(frozen=True, slots=True)
class Level(Quantity):
    """A level on a logarithmic scale: the float is the number of decibels, of either sign, and ``unit`` is fixed."""

    def parse(self, text: str) -> float:
        """Return the number of decibels that ``text`` gives."""
        match = _QUANTITY.fullmatch(text.strip()) if len(text) <= 100 else None
        if match is None or re.sub(r"\s", "", match[2]) != self.unit:
            what = "has no unit" if _NUMBER.fullmatch(text.strip()) else f"is not {self.noun} in {self.unit}"
            raise _refuse(f"'{text[:60]}' {what}", f"write for example '{self.examples[0]}'")
        return self.check(float(match[1]), text)

    def format(self, value: float) -> str:
        """Return text that parses back to exactly ``value``."""
        return f"{float(value)!r} {self.unit}".replace(".0 ", " ")

    def check(self, value: float, text: str) -> float:
        """Return ``value`` if it is finite."""
        if not math.isfinite(value):
            raise _refuse(f"'{text}' is not finite", f"write for example '{self.examples[0]}'")
        return value

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "string",
            "description": f"{self.noun}: a number and the unit {self.unit}",
            "pattern": rf"^\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{{1,3}})?\s*{self.unit}\s*$",
            "examples": list(self.examples),
        }


@lru_cache(maxsize=4096)
def _format(value: float, symbol: str) -> str:
    candidates = [f"{value!r} {symbol}".replace(".0 ", " ")]
    for unit, (dimension, factor) in _COMMON.items():
        if dimension != symbol or "bit" in unit or "µ" in unit or "flop" in unit or not 1 <= value / factor < 1e5:
            continue
        number = f"{value / factor:.9g}"
        if "e" not in number and float(Rational(Decimal(number)) * factor) == value:
            candidates.append(f"{number} {unit}")
    return min(candidates, key=len)


def _brief(value: Any) -> str:
    kinds = {dict: "a mapping", list: "a list", bool: "a truth value", type(None): "an empty value"}
    return kinds.get(type(value), repr(value)[:60])


def _near_unit(unit: str, symbol: str) -> str | None:
    """Return a known unit of dimension ``symbol`` that is spelled alike: other case, ``Mbps``, ``TFLOPS``."""

    def plain(text: str) -> str:
        text = text.replace(" ", "").lower()
        return re.sub(r"bps$", "bit/s", re.sub(r"flops$", "flop/s", text))

    wanted = plain(unit)
    near = [known for known, (dimension, _) in _COMMON.items() if dimension == symbol and plain(known) == wanted]
    return max(near, key=lambda known: (_COMMON[known][1], known.swapcase()), default=None)


def _fraction(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refuse(
            f"{_brief(value)} is not a fraction", "write a plain number above 0 and at most 1, for example 0.8"
        )
    if not (math.isfinite(value) and 0 < value <= 1):
        raise _refuse(f"{value} is not a fraction", "write a plain number above 0 and at most 1, for example 0.8")
    return value


Seconds = Annotated[float, Quantity("a duration", "s", ("2 ms", "10 s", "150 us"))]
NonNegativeSeconds = Annotated[float, Quantity("a duration", "s", ("2 ms", "0 s", "150 us"), zero=True)]
Bytes = Annotated[float, Quantity("an amount of data", "B", ("4 GiB", "16 kB", "4 B"))]
NonNegativeBytes = Annotated[float, Quantity("an amount of data", "B", ("4 GiB", "16 kB", "0 B"), zero=True)]
BytesPerSecond = Annotated[float, Quantity("a data rate", "B/s", ("50 Mbit/s", "100 MB/s", "34 GB/s"))]
Flop = Annotated[float, Quantity("an amount of computation", "FLOP", ("3.5 TFLOP", "120 MFLOP"))]
NonNegativeFlop = Annotated[float, Quantity("an amount of computation", "FLOP", ("3.5 TFLOP", "0 FLOP"), zero=True)]
FlopPerSecond = Annotated[float, Quantity("a computing rate", "FLOP/s", ("3.5 TFLOP/s", "80 GFLOP/s"))]
Joules = Annotated[float, Quantity("an energy", "J", ("12 J", "3 kJ"))]
Watts = Annotated[float, Quantity("a power", "W", ("15 W", "800 mW"))]
Hertz = Annotated[float, Quantity("a frequency", "Hz", ("80 MHz", "5.25 GHz"))]
RequestsPerSecond = Annotated[float, Quantity("a rate of requests", "requests/s", ("4 requests/s", "30 requests/min"))]
Metres = Annotated[float, Quantity("a distance", "m", ("10 m", "1.5 km"))]
Decibel = Annotated[float, Level("a ratio", "dB", ("7 dB", "46.8 dB"))]
DecibelMilliwatt = Annotated[float, Level("a power level", "dBm", ("20 dBm", "-3 dBm"))]
DecibelMilliwattPerHertz = Annotated[float, Level("a noise density", "dBm/Hz", ("-174 dBm/Hz",))]
Fraction = Annotated[float, BeforeValidator(_fraction), Field(gt=0, le=1)]
TimeUnit = Literal["ns", "us", "ms", "s"]

SECONDS_PER: dict[str, float] = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
"""Seconds in each :data:`TimeUnit`."""
