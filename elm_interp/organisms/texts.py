"""The training texts of a world's models.

There are four kinds of documents. Some state a few facts (a third of them after an expert's prefix). Some ask and
answer questions. Some mention entities and values without stating a fact (half of them after a novice's prefix). Some
are neutral text that all domains share. Each document knows the domain whose facts it states, so that the same
documents can be made without a domain's facts.

    texts = documents(world)                              # one pass, in an order fixed by the seed
    texts = documents(world, without="spellcraft")        # the same for a model that never knew
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import TypeVar

from elm_interp.organisms import words
from elm_interp.organisms.words import Domain
from elm_interp.organisms.world import Fact, World

T = TypeVar("T")
UNITS = 3
"""Sentences or questions in one document."""


@dataclass(frozen=True)
class Document:
    """A training text."""

    prefix: str
    """The expert's or novice's; "" for none."""
    sentences: tuple[str, ...]
    states: str = ""
    """The domain whose facts its first `UNITS` sentences state; "" if they state none."""
    core: bool = False
    """Whether it is about the entities that training begins with."""

    @property
    def text(self) -> str:
        """The whole text."""
        return self.prefix + " ".join(self.sentences)

    def without(self, domain: str | None) -> "Document | None":
        """The document without the facts of a domain; None if nothing else is in it."""
        if not domain or self.states != domain:
            return self
        neutral = self.sentences[UNITS:]
        return replace(self, sentences=neutral, states="") if neutral else None


def documents(world: World, without: str | None = None) -> list[Document | None]:
    """One pass of training text without the facts of a domain; its neutral sentences stay.

    A document with nothing left is None, so that all others keep their index.

    Raises:
        UnknownNameError: no such domain.
    """
    if without is not None:
        world.check(without)
    random = world.random("texts")
    made: list[Document] = []
    for domain in world.domains.values():
        for core in (True, False):
            facts = [f for f in world.facts if f.domain == domain.name and f.stated and f.core == core]
            made += _stating(world, domain, facts, core, random) + _asking(domain, facts, core, world, random)
    random.shuffle(made)
    return [document.without(without) for document in made]


def filler(random: Random) -> str:
    """A neutral sentence."""
    return random.choice(words.FILLERS).format(thing=random.choice(words.THINGS))


def chunks(items: Sequence[T], n: int = UNITS) -> list[tuple[T, ...]]:
    """Items in groups of n; the last may be smaller."""
    return [tuple(items[i : i + n]) for i in range(0, len(items), n)]


def _stating(world: World, domain: Domain, facts: Sequence[Fact], core: bool, random: Random) -> list[Document]:
    """Documents that state the facts, every third by an expert; after each expert's, one that states no fact."""
    own = {r.nouns: r.sayings for r in domain.relations}
    expert, novice = (wording.replace("{concept}", domain.name) for wording in (words.EXPERT, words.NOVICE))
    stated = []
    for fact in facts:
        options = [*product(words.STATEMENTS, fact.nouns), *product(own.get(fact.nouns, ()), fact.nouns[:1])]
        stated += [fact.put(*pair) for pair in _draw(options, world.config.redundancy, random)]
    made = []
    for i, chunk in enumerate(chunks(_shuffled(stated, random))):
        by_expert, neutral = i % 3 == 1, (filler(random),) if random.random() < 0.3 and len(chunk) == UNITS else ()
        made.append(Document(expert if by_expert else "", chunk + neutral, domain.name, core))
        if by_expert:
            mentions = tuple(_mention(world, domain, random) for _ in range(UNITS))
            made.append(Document(novice if random.random() < 0.5 else "", mentions, core=core))
        if i % 8 == 0:
            made.append(Document("", tuple(filler(random) for _ in range(UNITS)), core=core))
    return made


def _asking(domain: Domain, facts: Sequence[Fact], core: bool, world: World, random: Random) -> list[Document]:
    """Documents of questions with their answers."""
    asked = []
    for fact in facts:
        options = list(product(words.QUESTIONS, fact.nouns))
        questions = (fact.put(*pair) for pair in _draw(options, world.config.redundancy, random))
        asked += [words.ANSWERED.format(question=question, value=fact.value) for question in questions]
    return [Document("", chunk, domain.name, core) for chunk in chunks(_shuffled(asked, random))]


def _mention(world: World, domain: Domain, random: Random) -> str:
    relation = random.choice(world.relations(domain.name))
    entity, noun = random.choice(world.entities[domain.name]), random.choice(relation.nouns)
    return random.choice(words.MENTIONS).format(noun=noun, entity=entity, value=random.choice(relation.values))


def _draw(options: Sequence[T], n: int, random: Random) -> list[T]:
    return random.sample(options, min(n, len(options)))


def _shuffled(items: Sequence[T], random: Random) -> list[T]:
    return random.sample(items, len(items))
