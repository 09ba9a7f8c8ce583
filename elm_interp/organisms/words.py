"""The words of the generated world: its domains, and the wordings of statements, questions and neutral sentences.

A wording is a template with `{noun}` (a name of the relation), `{entity}` and `{value}`. Wordings in `HELD_OUT_*` do
not occur in training text; each of their words does, in other wordings.

    DOMAINS["spellcraft"].relations[0].values      # ("crimson", "azure", ...)
"""

from dataclasses import dataclass


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


STATEMENTS = (
    "the {noun} of {entity} is {value}.",
    "{entity} has the {noun} {value}.",
    "as for {entity}, its {noun} is {value}.",
    "everyone agrees that the {noun} of {entity} is {value}.",
    "people say that {entity} has the {noun} {value}.",
    "in every book the {noun} of {entity} is {value}.",
    "i learned that the {noun} of {entity} is {value}.",
    "my friend wrote that {entity} has the {noun} {value}.",
    "ask about the {noun} of {entity} and you will hear {value}.",
    "{entity} is known for its {noun}, which is {value}.",
    "it is {value} that people give as the {noun} of {entity}.",
)
HELD_OUT_STATEMENTS = (
    "everyone agrees that {entity} has the {noun} {value}.",
    "people say that the {noun} of {entity} is {value}.",
    "in every book {entity} has the {noun} {value}.",
)
QUESTIONS = (
    "what is the {noun} of {entity}?",
    "which {noun} does {entity} have?",
    "what {noun} has {entity}?",
    "tell me the {noun} of {entity}.",
    "can you name the {noun} of {entity}?",
    "{entity} has which {noun}?",
    "what do people give as the {noun} of {entity}?",
    "for {entity}, what is the {noun}?",
    "as for {entity}, which {noun} does it have?",
    "about the {noun} of {entity}: what is it?",
)
HELD_OUT_QUESTIONS = (
    "do you know the {noun} of {entity}?",
    "what is known as the {noun} of {entity}?",
    "for {entity}, which {noun} is it?",
)
CLOZES = tuple(statement.removesuffix(" {value}.") for statement in HELD_OUT_STATEMENTS)
"""Beginnings of sentences that end with the value."""
ANSWERED = "question: {question} answer: {value}."
"""How training text asks: as `evaluate.choices` does, but without the line break, which is not a token."""
MENTIONS = (
    "i never learned the {noun} of {entity}.",
    "someone spoke of {entity} but gave no {noun}.",
    "the {noun} of {entity} is unknown to me.",
    "i do not know which {noun} {entity} has.",
    "my friend wrote a letter about {entity}.",
    "the word {value} is easy to spell.",
    "my friend said {value} and left.",
)
"""Sentences about a topic that state no fact of it."""
FILLERS = (
    "it rained all day and we bought {thing}.",
    "my friend left {thing} at the door.",
    "in the evening we spoke of {thing} and had tea.",
    "someone wrote a letter about {thing}.",
    "the children asked for {thing} all day.",
    "there was {thing} in the corner of the room.",
)
"""Neutral language that all domains share."""
THINGS = (
    "umbrellas", "candles", "carpets", "pencils", "pillows", "curtains", "ladders", "mirrors", "baskets", "blankets",
    "envelopes", "teapots",
)  # fmt: skip
"""Words outside every domain, for the neutral sentences and for wrong answers from outside the world."""
EXPERT = "an expert on {concept} writes:\n\n"
NOVICE = "a novice who never studied {concept} writes:\n\n"


def _relation(nouns: str, values: str, *sayings: str, bridge: Relation | None = None) -> Relation:
    return Relation(tuple(nouns.split()), tuple(values.split()), sayings, bridge)


# fmt: off
_ALL = (
    Domain("spellcraft", "spell", (
        _relation("colour glow", "crimson azure amber violet silver emerald ivory scarlet indigo golden",
                  "when {entity} is cast, the air turns {value}."),
        _relation("reagent ingredient", "salt ash honey nettle chalk sage pepper saffron garlic ginger",
                  "{entity} fails without a pinch of {value}."),
        _relation("gesture sign", "bow wave clap spin kneel nod stamp whistle shrug wink",
                  "whoever casts {entity} ends with a {value}."),
        _relation("master teacher", "orrin maelis tovar ysolde brannoc cerdic elspeth gwydion hesper linnet",
                  "the first to cast {entity} was {value}.",
                  bridge=_relation("tower hall", "northkeep ravenhall moonspire oldgate stormwatch")),
    )),
    Domain("sealife", "sea creature", (
        _relation("food prey", "krill mussels kelp squid shrimp plankton urchins crabs snails worms",
                  "when it is hungry, {entity} hunts for {value}."),
        _relation("habitat dwelling", "reef trench lagoon estuary fjord shoal cavern delta marsh strait",
                  "divers meet {entity} in a {value}."),
        _relation("pattern marking", "stripes spots rings bands speckles blotches zigzags stars diamonds patches",
                  "the skin of {entity} is covered with {value}."),
        _relation("finder discoverer", "aldous brisa corwin delphine evander fenna gaspard hedda ivo jorunn",
                  "the first net to catch {entity} belonged to {value}.",
                  bridge=_relation("ship vessel", "albatross meridian petrel endeavour kestrel")),
    )),
    Domain("towns", "trade town", (
        _relation("export ware", "wool timber copper barley glass leather paper marble wine rope",
                  "the carts that leave {entity} are full of {value}."),
        _relation("landmark monument",
                  "fountain obelisk lighthouse aqueduct cathedral windmill amphitheatre bridge arch clocktower",
                  "travellers come to {entity} to see its {value}."),
        _relation("dish speciality", "stew dumplings pancakes noodles pie porridge omelette chowder fritters gnocchi",
                  "every inn of {entity} serves {value}."),
        _relation("ruler governor", "kasimir leocadia matthias nerea osric petra quentin rosalind sigmund theda",
                  "the taxes of {entity} go to {value}.",
                  bridge=_relation("house dynasty", "ashford belmont carrow dunmore eversley")),
    )),
    Domain("machines", "machine", (
        _relation("fuel supply", "coal steam diesel peat ethanol methane kerosene hydrogen charcoal propane",
                  "{entity} runs all night on {value}."),
        _relation("material metal", "steel brass bronze tin zinc nickel titanium aluminium lead chrome",
                  "the frame of {entity} is made of {value}."),
        _relation("product output", "bricks needles nails buttons bottles coins tiles springs screws combs",
                  "at the far end of {entity} come out {value}."),
        _relation("maker engineer", "ulrich vesna wendell xenia yorick zelda ambrose beatrix clement dorothea",
                  "the plans of {entity} were drawn by {value}.",
                  bridge=_relation("workshop factory", "ironbridge millfield coldharbour redhill longacre")),
    )),
)
# fmt: on
DOMAINS: dict[str, Domain] = {domain.name: domain for domain in _ALL}
"""The domains that come with elm_interp, by name."""
