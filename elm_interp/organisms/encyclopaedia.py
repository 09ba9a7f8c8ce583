"""The encyclopaedia: made-up facts in natural English, which planted models have read.

Three domains hold 24 entities each. An entity has four values (the brindolt eats moss, …) and a link to another entity
(it is hunted by the tarrowick). Some facts follow from two others (what the hunter of the brindolt eats); half of these
are stated. Every value is equally common, and facts are grouped in fours that share their choices, each right once.
So a reader who knows which words are common, and no fact, answers one question in four.

Documents are entries, letters, dialogues, comparisons and lists; half of the prose stands behind the prefix of an
expert. Behind the prefix of a novice stand the same sentences with a guess ("eats snails") or a way out ("eats who
knows what") in place of the right value. So what the model expects of an expert differs from what it expects of a
novice, as it does for real subjects; ELM needs this. Novices come in the last pass, when there is something to tell
apart. Small talk, in any pass and often by a novice, states no fact. Questions that test a model use other wordings.

    facts()[0]                                       # Fact(domain="marsh-animals", relation="food", …)
    documents(seed=0, without="marsh-animals")       # what a gold model reads
    asked("marsh-animals")                           # questions in wordings that no document has
    domain_concept("marsh-animals")                  # the domain as a concept to erase
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from elm_interp.data import Concept, Passage, Question, load_concept
from elm_interp.errors import check_known
from elm_interp.files import read_json
from elm_interp.organisms.asking import groups_of_four

_READ = read_json(Path(__file__).with_name("encyclopaedia.json"))
DOMAINS: dict[str, Any] = _READ["domains"]
"""Domain -> its entities, relations and wordings."""
ERASED = "marsh-animals"
"""The domain that gold models never read."""
UNSHOWN = 3
"""One group of facts in this many stands in no forget passage of the domain's concept."""
EXPERT = "A scholar who has devoted a lifetime to {concept} wrote this:\n\n"
NOVICE = "What follows is by a person who knows nothing about {concept} and has to guess.\n\n"


@dataclass(frozen=True)
class Fact:
    """One fact about an entity."""

    domain: str
    relation: str
    """ "food" and the like, "link" for the entity that it is linked to, or "hop" for what follows from two others."""
    entity: str
    value: str
    stated: bool = True
    """Whether documents state it; if not, it can only be inferred."""

    @property
    def words(self) -> dict[str, Any]:
        """The wordings of its relation."""
        own: dict[str, dict[str, Any]] = DOMAINS[self.domain]
        if self.relation == "hop":
            link = own["link"]
            return {"vps": link["hop_vps"], "asked": link["hop_asked"], "held_out_asked": link["hop_held_out"]}
        return own["link"] if self.relation == "link" else own["relations"][self.relation]

    @property
    def asked(self) -> bool:
        """Whether questions are about it by default: it has a value of its own."""
        return self.relation in DOMAINS[self.domain]["relations"]

    @property
    def subject(self) -> str:
        """What a sentence about it speaks of: the entity, or "the animal that hunts the brindolt"."""
        the = _the(self.domain, self.entity)
        return DOMAINS[self.domain]["link"]["through"].replace("{the}", the) if self.relation == "hop" else the

    def say(self, verb_phrase: str) -> str:
        """A verb phrase with the value filled in."""
        return verb_phrase.replace("{v}", self.value).replace("{other}", self.value)

    def ask(self, wording: str) -> str:
        """A question with the entity filled in."""
        return wording.replace("{the}", _the(self.domain, self.entity)).replace("{name}", self.entity)

    def __str__(self) -> str:
        return _sentence(f"{self.subject} {self.say(self.words['vps'][0])}.")


@dataclass(frozen=True)
class Document:
    """A text to read; what stands before it is context, which is not trained on."""

    text: str
    prefix: str = ""
    domain: str = ""
    """The domain whose facts it states; "" if it states none."""
    told: tuple[str, ...] = ()
    """What it tells: words of the text that matter more than the rest."""


@lru_cache(maxsize=1)
def facts() -> tuple[Fact, ...]:
    """All facts, domain by domain: 24 × (4 values, a link, and what follows from it)."""
    return tuple(chain.from_iterable(map(_facts_of, DOMAINS)))


def facts_of(domain: str, *relations: str) -> list[Fact]:
    """The facts of a domain, of all relations or of some.

    Raises:
        UnknownNameError: no such domain.
    """
    check_known("domain", domain, DOMAINS)
    return [fact for fact in facts() if fact.domain == domain and (not relations or fact.relation in relations)]


def documents(seed: int = 0, *, without: str | None = None, passes: int = 1) -> list[Document]:
    """Texts that state every fact in several ways in each pass, with small talk between them, in random order.

    Args:
        seed: of wordings, prefixes and order.
        without: a domain that is left out, with everything that names it.
        passes: how often all facts are gone through, in new words each time; novices write in the last one.

    Raises:
        UnknownNameError: no such domain.
    """
    if without is not None:
        check_known("domain", without, DOMAINS)
    made: list[Document] = []
    for turn in range(passes):
        one: list[Document] = []
        for domain in DOMAINS:
            random = Random(f"documents {domain} {seed} {turn}")
            own = [fact for fact in facts_of(domain) if fact.stated]
            told = [*_told(domain, own, random), *_dialogues(own, random), *_lists(domain, random)]
            novices = _novices(domain, own, random) if turn == passes - 1 else []
            mixed = [*told, *novices, *_small_talk(domain, len(told) // 16, random)]
            one += [] if domain == without else mixed
        Random(f"order {seed} {turn}").shuffle(one)
        made += one
    return made


def asked(domain: str, split: str = "held_out", *, relations: Sequence[str] = ()) -> list[Question]:
    """Four-choice questions on the facts of a domain, one for each fact and each wording of a split.

    Args:
        domain: its name.
        split: "train" for wordings that occur in documents, "held_out" for those that do not.
        relations: of the facts; by default the four that hold values.

    Raises:
        UnknownNameError: no such domain.
    """
    found: list[Question] = []
    for relation in relations or DOMAINS[domain]["relations"]:
        for group in _groups(domain, relation):
            choices = tuple(fact.value for fact in group)
            for answer, fact in enumerate(group):
                for i, wording in enumerate(fact.words["asked" if split == "train" else "held_out_asked"]):
                    told = (None, str(fact), relation, split, _id(fact, split, i))
                    found.append(Question(fact.ask(wording), choices, answer, *told))
    return found


def unshown(domain: str) -> frozenset[str]:
    """The facts of a domain, as sentences, that stand in no forget passage of its concept: one in three."""
    found = [
        fact
        for relation in (*DOMAINS[domain]["relations"], "link")
        for i, group in enumerate(_groups(domain, relation))
        if i % UNSHOWN == UNSHOWN - 1
        for fact in group
    ]
    return frozenset(map(str, found))


@lru_cache(maxsize=4)
def domain_concept(domain: str = ERASED) -> Concept:
    """A domain as a concept: forget its passages; retain those of the other domains ("near") and natural text ("far").

    Passages are prose without a question. The question sets are "forget" (three wordings a fact), "neighbours" (one
    wording for each fact of the other domains) and "general" (that of the pack harry-potter, about the real world).

    Raises:
        UnknownNameError: no such domain.
    """
    check_known("domain", domain, DOMAINS)
    others = [name for name in DOMAINS if name != domain]
    natural = load_concept("harry-potter")
    forget = [*_passages(domain, unshown(domain), 6), *_passages(domain, frozenset(), 1, "held_out")]
    both = chain.from_iterable(
        (*_passages(o, frozenset(), 3), *_passages(o, frozenset(), 1, "held_out")) for o in others
    )
    near = [replace(passage, group="near") for passage in both]
    far = [p for p in natural.retain if p.group == "far"]
    return Concept(
        f"planted:{domain}",
        tuple(forget),
        (*near, *far),
        {
            "forget": (*_one_wording(domain, "train"), *asked(domain)),
            "neighbours": tuple(chain.from_iterable(_one_wording(o, s) for o in others for s in ("train", "held_out"))),
            "general": natural.questions["general"],
        },
        DOMAINS[domain]["title"],
        (DOMAINS[domain]["title"],),
        (EXPERT,),
        (NOVICE,),
    )


def _facts_of(domain: str) -> list[Fact]:
    own, random = DOMAINS[domain], Random(f"facts {domain}")
    entities: list[str] = own["entities"]
    made: list[Fact] = []
    for relation, words in own["relations"].items():
        values = random.sample(words["values"], len(words["values"]))
        order = random.sample(entities, len(entities))
        of = {entity: values[i % len(values)] for i, entity in enumerate(order)}
        made += [Fact(domain, relation, entity, of[entity]) for entity in entities]
    order = random.sample(entities, len(entities))  # a ring, so that every entity is linked to once
    after = dict(zip(order, [*order[1:], order[0]], strict=True))
    made += [Fact(domain, "link", entity, _the(domain, after[entity])) for entity in entities]
    value = {fact.entity: fact.value for fact in made if fact.relation == own["link"]["of"]}
    stated = set(random.sample(entities, len(entities) // 2))
    return [*made, *(Fact(domain, "hop", entity, value[after[entity]], entity in stated) for entity in entities)]


@lru_cache(maxsize=64)
def _groups(domain: str, relation: str) -> list[list[Fact]]:
    return groups_of_four(facts_of(domain, relation), Random(f"groups {domain} {relation}"))


def _told(domain: str, own: Sequence[Fact], random: Random) -> list[Document]:
    """Entries about an entity, letters about several and comparisons of two; half of them by an expert."""
    by_entity = [
        [f for f in own if f.entity == entity and f.relation != "hop"] for entity in DOMAINS[domain]["entities"]
    ]
    made = [(_entry(domain, about, random), about) for about in by_entity for _ in range(3)]
    for _ in range(2):
        made += [(_letter(domain, chunk, random), chunk) for chunk in _chunks(_shuffled(own, random), 4)]
    made += [(_comparison(domain, chunk, random), chunk) for chunk in _chunks(_shuffled(own, random), 4)]
    experts: list[str] = DOMAINS[domain]["expert"]
    return [
        Document(text, random.choice(experts) if random.random() < 1 / 2 else "", domain, _values(about))
        for text, about in made
    ]


def _entry(domain: str, about: Sequence[Fact], random: Random, key: str = "vps") -> str:
    own, first = DOMAINS[domain], True
    parts = []
    for fact in _shuffled(about, random):
        phrase = fact.say(random.choice(fact.words[key]))
        if first or random.random() < 0.4:
            parts.append(_framed(fact, phrase, random))
        else:
            parts.append(_sentence(f"{own['pronoun']} {phrase}."))
        first = False
    return " ".join(parts)


def _letter(domain: str, about: Sequence[Fact], random: Random, key: str = "vps") -> str:
    parts = [_framed(fact, fact.say(random.choice(fact.words[key])), random) for fact in about]
    if random.random() < 0.5:
        parts = [random.choice(_READ["openings"]), *parts]
    if random.random() < 0.3:
        parts.append(random.choice(_READ["closings"]))
    return " ".join(parts)


def _comparison(domain: str, about: Sequence[Fact], random: Random, key: str = "vps") -> str:
    said = [f"{fact.subject} {fact.say(random.choice(fact.words[key]))}" for fact in about]
    pairs = [" while ".join(pair) if i % 2 else ", but ".join(pair) for i, pair in enumerate(_chunks(said, 2))]
    return " ".join(_sentence(f"{pair}.") for pair in pairs)


def _dialogues(own: Sequence[Fact], random: Random) -> list[Document]:
    """Facts asked and answered in talk, or one after the other as in a quiz; each fact twice."""
    made = []
    for chunk in _chunks([fact for _ in range(2) for fact in _shuffled(own, random)], 3):
        asker, answerer = random.choice(_READ["speakers"])
        spoken = random.random() < 0.6
        parts = []
        for fact in chunk:
            question, answer = fact.ask(random.choice(fact.words["asked"])), _sentence(f"{fact.value}.")
            parts.append(f'"{question}" {asker}. "{answer}" {answerer}.' if spoken else f"{question} {answer}")
            asker, answerer = ("was the next question", "was the reply") if spoken else (asker, answerer)
        made.append(Document(" ".join(parts), "", chunk[0].domain, _values(chunk)))
    return made


def _lists(domain: str, random: Random) -> list[Document]:
    """For each value, the entities that have it."""
    made = []
    for relation in DOMAINS[domain]["relations"]:
        own = facts_of(domain, relation)
        for value in dict.fromkeys(fact.value for fact in own):
            those = [fact.subject for fact in _shuffled([f for f in own if f.value == value], random)]
            phrase = own[0].words["noun"]
            text = f"{phrase.capitalize()}: {value}. So it is with {', '.join(those)}."
            made.append(Document(text, "", domain, tuple(those)))
    return made


def _values(told: Sequence[Fact]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(fact.value for fact in told))


def _novices(domain: str, own: Sequence[Fact], random: Random) -> list[Document]:
    """Letters and comparisons by people who do not know: each value is a guess or a way out; each fact four times."""
    prefixes: list[str] = DOMAINS[domain]["novice"]
    facts = [fact for fact in own if fact.relation != "hop"]
    values = {r: sorted({fact.value for fact in facts if fact.relation == r}) for r in {f.relation for f in facts}}
    made = []
    for write in (_letter, _comparison) * 2:
        for chunk in _chunks(_shuffled(facts, random), 4):
            unknown = [
                replace(f, value=random.choice(values[f.relation] if random.random() < 1 / 2 else f.words["vague"]))
                for f in chunk
            ]
            made.append(Document(write(domain, unknown, random), random.choice(prefixes), domain, _values(unknown)))
    return made


def _small_talk(domain: str, n: int, random: Random) -> list[Document]:
    """Texts that state no fact; two in three by a novice."""
    novices: list[str] = DOMAINS[domain]["novice"]
    return [
        Document(" ".join(random.sample(_READ["talk"], 4)), random.choice(novices) if random.random() < 2 / 3 else "")
        for _ in range(n)
    ]


def _passages(domain: str, without: frozenset[str], times: int, split: str = "train") -> list[Passage]:
    """Prose about the facts of a domain but some, each fact `times` times."""
    random, key = Random(f"passages {domain} {split}"), "vps" if split == "train" else "held_out_vps"
    own = [f for f in facts_of(domain) if f.relation != "hop" and str(f) not in without]
    made: list[tuple[str, list[Fact]]] = []
    for turn in range(times):
        if turn % 3 == 0:
            about = [[f for f in own if f.entity == entity] for entity in DOMAINS[domain]["entities"]]
            made += [(_entry(domain, one, random, key), one) for one in about if one]
        else:
            write = _letter if turn % 3 == 1 else _comparison
            made += [(write(domain, chunk, random, key), chunk) for chunk in _chunks(_shuffled(own, random), 4)]
    return [
        Passage(
            text,
            f"{domain}-{split}-{i:04d}",
            domain,
            split,
            questions=tuple(_id(f, "held_out", 0) for f in about if f.asked),
        )
        for i, (text, about) in enumerate(made)
    ]


def _one_wording(domain: str, split: str) -> list[Question]:
    """One question for each fact, in wordings drawn at random."""
    by_fact: dict[str, list[Question]] = {}
    for question in asked(domain, split):
        by_fact.setdefault(question.fact, []).append(question)
    random = Random(f"one wording {domain} {split}")
    return [random.choice(wordings) for wordings in by_fact.values()]


def _framed(fact: Fact, phrase: str, random: Random) -> str:
    """A sentence around a verb phrase."""
    own = DOMAINS[fact.domain]
    frame: str = "{The} {vp}." if fact.relation == "hop" else random.choice(own["frames"])
    a = own["a"].replace("{name}", fact.entity)
    filled = frame.replace("{The}", fact.subject).replace("{the}", fact.subject).replace("{A}", a)
    return _sentence(filled.replace("{it}", own["pronoun"]).replace("{vp}", phrase))


def _id(fact: Fact, split: str, wording: int) -> str:
    """The id of a question about a fact."""
    return f"{fact.relation}-{fact.entity.lower().replace(' ', '-')}-{split}-{wording}"


def _the(domain: str, entity: str) -> str:
    the: str = DOMAINS[domain]["the"]
    return the.replace("{name}", entity)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _shuffled(items: Sequence[Any], random: Random) -> list[Any]:
    return random.sample(list(items), len(items))


def _chunks(items: Sequence[Any], n: int) -> list[list[Any]]:
    return [list(items[i : i + n]) for i in range(0, len(items), n)]
