"""Questions about a world, in wordings that no training text has; and a domain as a concept to erase.

Facts are grouped in fours that share their four choices, each right once. So a model that knows only which values are
common, or always names the same one, scores exactly 1/4.

    concept = domain_concept(world, "spellcraft")
    score_choices(lm, questions(world, "spellcraft"))
    score_choices(lm, clozes(world, "spellcraft"), template="{question}")
"""

from collections.abc import Sequence
from itertools import chain
from random import Random
from typing import Protocol, TypeVar

from elm_interp.data import Concept, Passage, Question
from elm_interp.organisms import words
from elm_interp.organisms.texts import UNITS, chunks, filler
from elm_interp.organisms.world import OPTIONS, World


class Valued(Protocol):
    """A fact that has a value."""

    @property
    def value(self) -> str:
        """The value."""
        ...


F = TypeVar("F", bound=Valued)


def questions(
    world: World, domain: str, split: str = "held_out", *, hops: int = 1, stated: bool = True
) -> list[Question]:
    """Four-choice questions on the facts of a domain, one for each fact and each wording of a split.

    Args:
        world: the world.
        domain: name of the domain.
        split: "train" for wordings that occur in training text, "held_out" for those that do not.
        hops: 1 for facts on entities, 2 for facts that follow from two others.
        stated: whether to ask for facts that training text states, or (with 2 hops) for those that must be inferred.

    Raises:
        UnknownNameError: no such domain.
    """
    wordings = words.QUESTIONS if split == "train" else words.HELD_OUT_QUESTIONS
    return _ask(world, domain, wordings, split, hops, stated, mark="q")


def clozes(world: World, domain: str, *, hops: int = 1, stated: bool = True) -> list[Question]:
    """Beginnings of sentences in held-out wordings, each with four endings; arguments as for `questions`."""
    return _ask(world, domain, words.CLOZES, "held_out", hops, stated, mark="c")


def domain_concept(world: World, domain: str) -> Concept:
    """A domain as a concept: forget its texts; retain those of other domains ("near") and neutral ones ("far").

    The question sets are "forget" (the domain), "general" (all other domains) and "neighbours" (the first other
    domain). Held-out questions and passages use wordings that no training text has. There is one training question
    per fact.
    Facts that follow from two others are asked too if training text states them.

    Raises:
        UnknownNameError: no such domain.
    """
    world.check(domain)
    others = [name for name in world.domains if name != domain]
    random = world.random("passages", domain)
    forget = _passages(world, domain, random)
    retain = [*chain.from_iterable(_passages(world, other, random, "near") for other in others)]
    for i in range(len(forget)):
        text, split = " ".join(filler(random) for _ in range(UNITS)), "train" if i % 4 else "held_out"
        retain.append(Passage(text, f"filler-{i:04d}", "filler", split, "far"))
    asked = {name: _both_splits(world, name) for name in world.domains}
    sets = {
        "forget": asked[domain],
        "neighbours": asked[others[0]],
        "general": tuple(chain.from_iterable(asked[other] for other in others)),
    }
    name = f"organism:{domain}" + (f"@{world.config.seed}" if world.config.seed else "")
    return Concept(name, tuple(forget), tuple(retain), sets, domain, (domain,), (words.EXPERT,), (words.NOVICE,))


def _ask(
    world: World, domain: str, wordings: Sequence[str], split: str, hops: int, stated: bool, mark: str
) -> list[Question]:
    world.check(domain)
    relations = [r if hops == 1 else r.bridge for r in world.domains[domain].relations]
    found: list[Question] = []
    for relation in filter(None, relations):
        facts = [f for f in world.facts_of(domain, hops) if f.nouns == relation.nouns and f.stated == stated]
        for w, wording in enumerate(wordings):
            random = world.random("questions", domain, relation.nouns[0], wording, stated)
            noun = relation.nouns[w % len(relation.nouns)]
            for group in groups_of_four(facts, random):
                choices = tuple(fact.value for fact in group)
                for answer, fact in enumerate(group):
                    text, name = fact.put(wording, noun), f"{domain}-{mark}{hops}-{split}-{len(found):04d}"
                    outside = random.choice(words.THINGS)
                    found.append(Question(text, choices, answer, outside, str(fact), relation.nouns[0], split, name))
    return found


def groups_of_four(facts: Sequence[F], random: Random) -> list[list[F]]:
    """Facts in groups of four with different values, the commonest values first; a few facts may be left over."""
    by_value: dict[str, list[F]] = {}
    for fact in random.sample(facts, len(facts)):
        by_value.setdefault(fact.value, []).append(fact)
    groups = []
    while sum(map(bool, by_value.values())) >= OPTIONS:
        largest = sorted(by_value.values(), key=len, reverse=True)[:OPTIONS]
        group = [facts_of_value.pop() for facts_of_value in largest]
        groups.append(random.sample(group, OPTIONS))
    return groups


def _both_splits(world: World, domain: str) -> tuple[Question, ...]:
    by_fact: dict[str, list[Question]] = {}
    for question in (q for hops in (1, 2) for q in questions(world, domain, "train", hops=hops)):
        by_fact.setdefault(question.fact, []).append(question)
    random = world.random("one wording", domain)
    held_out = (q for hops in (1, 2) for q in questions(world, domain, hops=hops))
    return (*(random.choice(wordings) for wordings in by_fact.values()), *held_out)


def _passages(world: World, domain: str, random: Random, group: str = "") -> list[Passage]:
    found: list[Passage] = []
    for split, wordings in (("train", words.STATEMENTS), ("held_out", words.HELD_OUT_STATEMENTS)):
        facts = world.facts_of(domain)
        stated = [f.put(random.choice(wordings), random.choice(f.nouns)) for f in random.sample(facts, len(facts))]
        for chunk in chunks(stated):
            found.append(Passage(" ".join(chunk), f"{domain}-{len(found):04d}", domain, split, group))
    return found
