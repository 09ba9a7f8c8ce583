"""A generated world: every fact in it is known, and so is every sentence that states one.

Entities of several domains have typed relations to values. Some facts follow from two others (the tower of the master
of a spell); half of those are never stated. `texts` writes about the world, `asking` asks about it.

    world = make_world(domains=("spellcraft", "towns"), entities=24, redundancy=4, seed=3)
    world.facts[0]                   # Fact(domain='spellcraft', subject='drosux', nouns=('colour', 'glow'), ...)
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice, product
from random import Random
from typing import Any

from elm_interp.errors import ConfigError, raise_all, unknown
from elm_interp.organisms import words
from elm_interp.organisms.words import DOMAINS, Domain, Relation

OPTIONS = 4
"""Choices per question."""
CORE_SHARE = 10
"""One entity in this many belongs to the core, whose texts are read first."""


@dataclass(frozen=True)
class WorldConfig:
    """Settings of a world; two worlds of the same config are equal."""

    domains: tuple[str | Domain, ...] = ("spellcraft", "sealife", "towns")
    """Names of built-in domains (`words.DOMAINS`), or your own domains."""
    erased: str = "spellcraft"
    """The domain that the gold model never knew and that the hiding model hides."""
    entities: int = 60
    """Entities per domain, a multiple of four."""
    relations: int = 4
    """Relations per entity: the first ones of its domain."""
    redundancy: int = 8
    """Number of wordings in which each fact is stated, and in which it is asked, in one pass over the texts."""
    seed: int = 0
    """Seed of names, facts, wordings, the order of texts, and the models' initial weights."""

    def resolved(self) -> tuple[Domain, ...]:
        """The domains, cut to the relations asked for.

        Raises:
            UnknownNameError: a name that is not a built-in domain, or an erased domain that is not in the world.
            ConfigError: settings that cannot work, all listed.
        """
        found = []
        for domain in self.domains:
            if isinstance(domain, str) and domain not in DOMAINS:
                raise unknown("domain", domain, DOMAINS)
            whole = DOMAINS[domain] if isinstance(domain, str) else domain
            found.append(replace(whole, relations=whole.relations[: self.relations]))
        names = [domain.name for domain in found]
        if self.erased not in names:
            raise unknown("erased domain", self.erased, names)
        problems = []
        if len(set(names)) != len(names) or len(names) < 2:
            problems.append(f"domains are {names}; expected at least two, all different")
        if self.entities < OPTIONS or self.entities % OPTIONS:
            problems.append(f"entities is {self.entities}; expected a multiple of {OPTIONS}")
        for name in ("relations", "redundancy"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; expected at least 1")
        raise_all(problems + _pool_problems(found), ConfigError, "this world cannot be made:")
        return tuple(found)


@dataclass(frozen=True)
class Fact:
    """One fact."""

    domain: str
    subject: str
    """The entity; "the master of drosux" if the fact follows from two others; a value if the fact links the two."""
    nouns: tuple[str, ...]
    """Names of the relation."""
    value: str
    hops: int = 1
    """2 if the fact follows from two others; 0 if it is about a value, and links the two; else 1."""
    stated: bool = True
    """Whether training text states it; if not, it can only be inferred."""
    core: bool = False
    """Whether it is about an entity of the core, with which training begins."""

    def put(self, wording: str, noun: str = "") -> str:
        """A wording filled in with the fact, the relation called by `noun` or by its main name."""
        return wording.format(noun=noun or self.nouns[0], entity=self.subject, value=self.value)

    def __str__(self) -> str:
        return self.put(words.STATEMENTS[0])


@dataclass(frozen=True)
class World:
    """Entities and facts; made by `make_world`."""

    config: WorldConfig

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """The domains by name."""
        return {domain.name: domain for domain in self.config.resolved()}

    @cached_property
    def entities(self) -> dict[str, tuple[str, ...]]:
        """Names of the entities of each domain, all different."""
        random = self.random("names")
        onsets, ends = [*"bdfgklmnprstvz", "br", "dr", "gr", "kr", "sk", "tr"], "lmnrsx"
        syllables = [onset + vowel for onset, vowel in product(onsets, "aeiou")]
        taken = set(self._words())
        names: dict[str, None] = {}  # as a set, in order
        while len(names) < self.config.entities * len(self.domains):
            name = "".join(random.choice(syllables) for _ in range(random.choice((2, 3)))) + random.choice(ends)
            if name not in taken:
                names[name] = None
        drawn = iter(names)
        return {domain: tuple(islice(drawn, self.config.entities)) for domain in self.domains}

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """All facts, domain by domain."""
        return tuple(chain.from_iterable(self._facts_of(domain) for domain in self.domains.values()))

    def facts_of(self, domain: str, hops: int = 1) -> list[Fact]:
        """The facts of a domain: about its entities (hops = 1), following from two others (2), or linking the two (0).

        Raises:
            UnknownNameError: no such domain.
        """
        self.check(domain)
        return [fact for fact in self.facts if fact.domain == domain and fact.hops == hops]

    def vocabulary(self) -> list[str]:
        """Every word that can occur in the world, in alphabetical order."""
        return sorted({*self._words(), *chain.from_iterable(self.entities.values())})

    def relations(self, domain: str) -> list[Relation]:
        """The relations of a domain's entities, and those of their values."""
        return _with_bridges(self.domains[domain])

    def random(self, *purpose: object) -> Random:
        """A generator for one purpose, so that no part of the world depends on the draws of another."""
        return Random(" ".join(map(str, (*purpose, self.config.seed))))

    def check(self, domain: str) -> None:
        """Raise UnknownNameError unless there is a domain of this name."""
        if domain not in self.domains:
            raise unknown("domain", domain, self.domains)

    def _facts_of(self, domain: Domain) -> Iterable[Fact]:
        names = self.entities[domain.name]
        core = set(names[: max(1, len(names) // CORE_SHARE)])
        for relation in domain.relations:
            random = self.random("facts", domain.name, relation.nouns[0])
            values = random.sample(relation.values, len(relation.values))
            entities = random.sample(names, len(names))
            # every value is equally common, so knowing the frequencies answers no question
            value_of = {entity: values[i % len(values)] for i, entity in enumerate(entities)}
            yield from (Fact(domain.name, e, relation.nouns, value_of[e], core=e in core) for e in names)
            if (bridge := relation.bridge) is not None:
                ends = random.sample(bridge.values, len(bridge.values))
                end_of = {value: ends[i % len(ends)] for i, value in enumerate(values)}
                yield from (Fact(domain.name, value, bridge.nouns, end_of[value], 0) for value in values)
                for i, e in enumerate(entities):
                    subject, stated = f"the {relation.nouns[0]} of {e}", i // len(values) % 2 == 0
                    yield Fact(domain.name, subject, bridge.nouns, end_of[value_of[e]], 2, stated)

    def _words(self) -> list[str]:
        wordings = [w if isinstance(w, str) else " ".join(w) for w in words.wordings().values()]
        relations = [relation for domain in self.domains for relation in self.relations(domain)]
        own = chain.from_iterable((*r.nouns, *r.values, *r.sayings) for r in relations)
        # `{noun}` and the like are not words
        text = re.sub(r"{\w+}", " ", " ".join((*wordings, *own, *self.domains)).lower())
        return re.findall(r"\w+|[^\s\w]", text)


def make_world(**settings: Any) -> World:
    """A world from the settings of `WorldConfig`, checked.

    Raises:
        UnknownNameError: an unknown domain.
        ConfigError: settings that cannot work, all listed.
    """
    world = World(WorldConfig(**settings))
    world.config.resolved()
    return world


def _with_bridges(domain: Domain) -> list[Relation]:
    return [r for top in domain.relations for r in (top, top.bridge) if r is not None]


def _pool_problems(domains: Sequence[Domain]) -> list[str]:
    problems: list[str] = []
    seen: dict[str, str] = {}
    for domain in domains:
        if not domain.relations:
            problems.append(f"{domain.name} has no relation; expected at least one")
        for relation in _with_bridges(domain):
            name = f"{domain.name}.{relation.nouns[0]}"
            if len(relation.values) < OPTIONS:
                problems.append(f"{name} has {len(relation.values)} values; expected at least {OPTIONS}")
            for value in relation.values:
                if value in seen:
                    where = f"{seen[value]} already; each value belongs to one relation"
                    problems.append(f"{name}: value {value!r} is in {where}")
                if not re.fullmatch(r"[a-z]+", value):
                    problems.append(f"{name}: value {value!r} is not one word of lower-case letters")
                seen[value] = name
    return problems
