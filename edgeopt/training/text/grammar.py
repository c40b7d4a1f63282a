"""A small language of notes about a household, generated from seeds: text to train on that anyone can make again.

Every document is one line. Kinds differ in what it takes to continue them: spelling and word order are local, a name
that was mentioned must be remembered over a line, facts must have been learnt, and sums must be worked out. So a larger
model knows more of it than a smaller one, and the tokens they agree on are those that are easy to guess.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

__all__ = ["ALPHABET", "HELD_OUT_SHARE", "KINDS", "corpus", "decode", "document", "encode", "is_held_out"]

#: Token ids are places in this text; the line break that ends a document is token 0.
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0123456789.,?:-'"
#: A document is held out when its digest says so: no line is ever in both halves, whatever the seeds.
HELD_OUT_SHARE = 0.1

_NAMES = ("mira", "tomas", "ines", "oskar", "lena", "pavel", "ruth", "hugo", "nadia", "felix", "clara", "simon")
_COLOURS = ("red", "blue", "green", "white", "black", "yellow", "silver", "brown")
_THINGS = ("cup", "lamp", "book", "key", "radio", "blanket", "kettle", "basket", "clock", "ladder", "camera", "phone")
_PLACES = ("kitchen", "garden", "cellar", "hall", "attic", "garage", "office", "bathroom", "porch", "workshop")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DISHES = ("soup", "rice", "bread", "pasta", "salad", "beans", "fish", "pancakes", "curry", "potatoes")
_MOODS = ("warm", "quiet", "cold", "bright", "windy", "rainy")
#: Facts that hold throughout: what each person cooks, where each thing is kept, on which day each room is cleaned.
_COOKS = {name: _DISHES[(5 * i + 3) % len(_DISHES)] for i, name in enumerate(_NAMES)}
_KEPT = {thing: _PLACES[(7 * i + 2) % len(_PLACES)] for i, thing in enumerate(_THINGS)}
_CLEANED = {place: _DAYS[(3 * i + 1) % len(_DAYS)] for i, place in enumerate(_PLACES)}


def _moved(draw: random.Random) -> str:
    """Somebody takes a thing somewhere, and the end of the line says who and what again."""
    one, other = draw.sample(_NAMES, 2)
    thing = f"{draw.choice(_COLOURS)} {draw.choice(_THINGS)}"
    here, there = draw.sample(_PLACES, 2)
    verb = draw.choice(("took", "carried", "brought"))
    left = f"{one} left the {thing} in the {here}. {other} {verb} it to the {there}."
    question = draw.choice(
        (f"where is the {thing}? in the {there}.", f"who left the {thing}? {one}.", f"who {verb} it? {other}.")
    )
    return f"{left} {question}"


def _sum(draw: random.Random) -> str:
    a, b = draw.randrange(2, 60), draw.randrange(2, 40)
    name, dish = draw.choice(_NAMES), draw.choice(_DISHES)
    if draw.random() < 0.5:
        return f"how much is {a} plus {b}? {a} plus {b} is {a + b}."
    return f"{name} had {a + b} bowls of {dish} and gave away {a}, so {b} are left."


def _fact(draw: random.Random) -> str:
    name, thing, place = draw.choice(_NAMES), draw.choice(_THINGS), draw.choice(_PLACES)
    asked = (
        f"what does {name} cook? {name} cooks {_COOKS[name]}.",
        f"where is the {thing} kept? the {thing} is kept in the {_KEPT[thing]}.",
        f"when is the {place} cleaned? on {_CLEANED[place]}.",
    )
    return " ".join(draw.sample(asked, 2))


def _spelling(draw: random.Random) -> str:
    words = draw.sample((*_THINGS, *_PLACES, *_DISHES, *_NAMES), 2)
    return " ".join(f"{word} is spelled {'-'.join(word)}." for word in words)


def _day(draw: random.Random) -> str:
    name = draw.choice(_NAMES)
    first = draw.randrange(7)
    days = [_DAYS[(first + i) % 7] for i in range(3)]
    return (
        f"on {days[0]} it was {draw.choice(_MOODS)} and {name} made {draw.choice(_DISHES)}, on {days[1]} it was "
        f"{draw.choice(_MOODS)} and {name} made {draw.choice(_DISHES)}, and then came {days[2]}."
    )


#: Kind → what writes a line of it.
KINDS: dict[str, Callable[[random.Random], str]] = {
    "moved": _moved,
    "sum": _sum,
    "fact": _fact,
    "spelling": _spelling,
    "day": _day,
}


def document(draw: random.Random) -> tuple[str, str]:
    """Write one document: its kind, and its text with the line break at the end."""
    kind = draw.choice(list(KINDS))
    return kind, KINDS[kind](draw) + "\n"


def is_held_out(text: str) -> bool:
    """Whether a document belongs to the held-out tenth."""
    return hashlib.sha256(text.encode()).digest()[0] < HELD_OUT_SHARE * 256


def corpus(seed: int, held_out: bool) -> Iterator[str]:
    """Yield documents of one half without end."""
    draw = random.Random(seed)
    while True:
        _, text = document(draw)
        if is_held_out(text) == held_out:
            yield text


def encode(text: str) -> list[int]:
    """Return token ids.

    Raises
    ------
    ValueError
        A character is not in the alphabet.
    """
    return [ALPHABET.index(letter) for letter in text]


def decode(tokens: list[int]) -> str:
    """Return the text of token ids."""
    return "".join(ALPHABET[token] for token in tokens)
