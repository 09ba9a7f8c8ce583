"""Mixtures: several concepts erased in one training, whose samples appear in each step in a given ratio.

    concept = load_concept("harry-potter=5+astronomy=1")     # five samples of the first to one of the second

Targets are prepared for each part alone, with its own prompts, dictionary and direction; metrics see the passages and
questions of all parts. No part may keep what another part erases. So each part loses

    retain passages and questions    whose topic is another part's name, title or keyword
    retain passages                  that another part forgets
    questions                        that another part asks about what it forgets, or on the same fact
    general questions                that another part left out of a set that both use (see `loading`, "without")
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from elm_interp.data.concept import QUESTION_SETS, Concept, Passage
from elm_interp.data.questions import Question
from elm_interp.data.records import same_text
from elm_interp.errors import ConfigError


@dataclass(frozen=True, repr=False)
class Mixture(Concept):
    """A concept made of several; `mix_concepts` makes one."""

    parts: tuple[Concept, ...] = ()
    """The concepts, without what they may not keep; ids begin with the name of their part."""
    ratio: tuple[int, ...] = ()
    """Samples of each part among sum(ratio)."""

    def sample(self, n: int) -> "Mixture":
        """The first n of every kind, set and split of each part."""
        return _joined([part.sample(n) for part in self.parts], self.ratio)

    def prompted(self, transform: Callable[[str], str] | None) -> "Mixture":
        """The same mixture, whose questions are asked through a transformation of prompts, in its parts too."""
        questions = super().prompted(transform).questions
        return replace(self, questions=questions, parts=tuple(part.prompted(transform) for part in self.parts))

    def _content(self) -> dict[str, Any]:
        return super()._content() | {"parts": [part._content() for part in self.parts]}


def mix_concepts(parts: Sequence[Concept], ratio: Sequence[int]) -> Mixture:
    """Join several concepts into one.

    Args:
        parts: the concepts, with different names.
        ratio: samples of each, whole numbers from 1.

    Raises:
        ConfigError: two parts have the same name, or the ratio does not fit them.
    """
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise ConfigError(f"a mixture of {', '.join(names)} has two concepts of one name; give each another.")
    if len(ratio) != len(parts) or min(ratio) < 1:
        raise ConfigError(
            f"the ratio of {', '.join(names)} is {list(ratio)}; expected {len(parts)} whole numbers from 1."
        )
    return _joined([_renamed(_without_others(part, [o for o in parts if o is not part])) for part in parts], ratio)


def _joined(parts: Sequence[Concept], ratio: Sequence[int]) -> Mixture:
    # parts may share passages, and borrow the same questions
    sets = [name for name in QUESTION_SETS if any(name in part.questions for part in parts)]
    asked = {name: [q for part in parts for q in part.questions.get(name, ())] for name in sets}
    questions = {
        name: tuple({(same_text(q.question), tuple(map(same_text, q.choices))): q for q in of}.values())
        for name, of in asked.items()
    }
    return Mixture(
        name="+".join(part.name for part in parts),
        forget=tuple({same_text(p.text): p for part in parts for p in part.forget}.values()),
        retain=tuple({same_text(p.text): p for part in parts for p in part.retain}.values()),
        questions=questions,
        title=" and ".join(part.title or part.name for part in parts),
        keywords=tuple(chain.from_iterable(part.keywords for part in parts)),
        expert=tuple(chain.from_iterable(part.prompts("expert") for part in parts)),
        novice=tuple(chain.from_iterable(part.prompts("novice") for part in parts)),
        dictionary={term: generic for part in parts for term, generic in part.dictionary.items()},
        parts=tuple(parts),
        ratio=tuple(ratio),
    )


def _without_others(part: Concept, others: Sequence[Concept]) -> Concept:
    """A part without what the others erase."""
    topics = {word.lower() for other in others for word in (other.name, other.title, *other.keywords)} - {""}
    texts = {same_text(passage.text) for other in others for passage in other.forget}
    asked = [q for other in others for q in other.questions.get("forget", ())]
    facts = {same_text(said) for q in asked for said in (q.question, q.fact)} - {""}
    mine, *rest = ({same_text(q.question) for q in one.questions.get("general", ())} for one in (part, *others))
    left_out = {question for theirs in rest if mine & theirs for question in mine - theirs}

    def stays(item: Passage | Question) -> bool:
        said = {item.text} if isinstance(item, Passage) else {item.question, item.fact}
        return item.topic.lower() not in topics and not set(map(same_text, said)) & (texts | facts)

    questions = {
        name: questions
        if name == "forget"
        else tuple(q for q in questions if stays(q) and same_text(q.question) not in left_out)
        for name, questions in part.questions.items()
    }
    return replace(part, retain=tuple(filter(stays, part.retain)), questions=questions)


def _renamed(part: Concept) -> Concept:
    """The part with its name before every id, since ids of two concepts may be the same."""

    def named(name: str) -> str:
        return f"{part.name}/{name}"

    def passages(given: Sequence[Passage]) -> tuple[Passage, ...]:
        return tuple(replace(p, id=named(p.id), questions=tuple(map(named, p.questions))) for p in given)

    questions = {name: tuple(replace(q, id=named(q.id)) for q in asked) for name, asked in part.questions.items()}
    return replace(part, forget=passages(part.forget), retain=passages(part.retain), questions=questions)
