"""The words of the generated world: its domains, and the wordings of statements, questions and neutral sentences.

A wording is a template with `{noun}` (a name of the relation), `{entity}` and `{value}`. Wordings in `HELD_OUT_*` do
not occur in training text; each of their words does, in other wordings.

    DOMAINS["spellcraft"].relations[0].values      # ("crimson", "azure", ...)

They are read from words.json. Its key "domains" holds a list of objects with "name", "kind" and "relations". Each of
these has "nouns" and "values" (single words, with a space between), "sayings" (a list) and, where there is one,
"bridge" (a relation). Every other key is the constant of that name below, in lower case: one text, or a list of texts,
or for "things" words with a space between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elm_interp.files import read_json


@dataclass(frozen=True)
class Relation:
    """One property that every entity of a domain has."""

    nouns: tuple[str, ...]
    """Its names, single words; the first is the main one."""
    values: tuple[str, ...]
    """Its values: at least four single words that no other relation has."""
    sayings: tuple[str, ...] = ()
    """Statements only for this relation, beside the shared wordings; each ends with `{value}` and a full stop."""
    bridge: "Relation | None" = None
    """A property of each value; with it, a fact about an entity follows from two others."""


@dataclass(frozen=True)
class Domain:
    """A field of knowledge."""

    name: str
    kind: str
    """The noun for one of its entities."""
    relations: tuple[Relation, ...]


_read = read_json(Path(__file__).with_name("words.json"))

STATEMENTS: tuple[str, ...] = tuple(_read["statements"])
HELD_OUT_STATEMENTS: tuple[str, ...] = tuple(_read["held_out_statements"])
QUESTIONS: tuple[str, ...] = tuple(_read["questions"])
HELD_OUT_QUESTIONS: tuple[str, ...] = tuple(_read["held_out_questions"])
CLOZES = tuple(statement.removesuffix(" {value}.") for statement in HELD_OUT_STATEMENTS)
"""Beginnings of sentences that end with the value."""
ANSWERED: str = _read["answered"]
"""How training text asks: as `evaluate.choices` does, but without the line break, which is not a token."""
MENTIONS: tuple[str, ...] = tuple(_read["mentions"])
"""Sentences about a topic that state no fact of it."""
FILLERS: tuple[str, ...] = tuple(_read["fillers"])
"""Neutral language that all domains share."""
THINGS: tuple[str, ...] = tuple(_read["things"].split())
"""Words outside every domain, for the neutral sentences and for wrong answers from outside the world."""
EXPERT: str = _read["expert"]
NOVICE: str = _read["novice"]


def wordings() -> dict[str, str | tuple[str, ...]]:
    """Every constant of this file but the domains, by name."""
    return {name: value for name, value in globals().items() if name.isupper() and name != "DOMAINS"}


def _relation(nouns: str, values: str, sayings: Sequence[str] = (), bridge: dict[str, Any] | None = None) -> Relation:
    linked = _relation(**bridge) if bridge else None
    return Relation(tuple(nouns.split()), tuple(values.split()), tuple(sayings), linked)


DOMAINS = {
    d["name"]: Domain(d["name"], d["kind"], tuple(_relation(**r) for r in d["relations"])) for d in _read["domains"]
}
"""The domains that come with elm_interp, by name."""
