"""Translation of a concept's terms into generic ones by a dictionary, with a map of token positions between both texts.

dictionary = make_dictionary(concept)                   # {"Hogwarts": "Earthsea", ...}
translated = translate("Harry went to Hogwarts.", {"Hogwarts": "Mystic Academy"})
translated.text                                         # "Harry went to Mystic Academy."
translated.place(14)                                    # 14: before the term; None inside it; shifted after it
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elm_interp.data import Concept, Passage

_WORD = re.compile(r"\w[\w-]+")


@dataclass(frozen=True)
class Span:
    """One term of the dictionary in a text, by characters."""

    term: str
    start: int
    end: int
    new_end: int
    """End of its translation in the translated text."""
    again: bool
    """Whether the term occurred in the text before."""


@dataclass(frozen=True)
class Translated:
    """A text with the dictionary's terms replaced."""

    text: str
    spans: tuple[Span, ...]

    def place(self, end: int) -> int | None:
        """End, in the translated text, of the original's first `end` characters; None if that is inside a term."""
        shift = 0
        for span in self.spans:
            if end <= span.start:
                break
            if end < span.end:
                return None
            shift = span.new_end - span.end
        return end + shift


def translate(text: str, dictionary: Mapping[str, str]) -> Translated:
    """Replace the dictionary's terms where they occur as whole words; longer terms come first."""
    if not dictionary:
        return Translated(text, ())
    longest_first = sorted(dictionary, key=lambda term: (-len(term), term))
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
    pieces: list[str] = []
    spans: list[Span] = []
    done, length = 0, 0
    for match in pattern.finditer(text):
        pieces += [text[done : match.start()], dictionary[match[0]]]
        length += len(pieces[-2]) + len(pieces[-1])
        again = any(span.term == match[0] for span in spans)
        spans.append(Span(match[0], match.start(), match.end(), length, again))
        done = match.end()
    return Translated("".join([*pieces, text[done:]]), tuple(spans))


def position_map(ends: Sequence[int], new_ends: Sequence[int], translated: Translated) -> dict[int, int]:
    """Token index in the original -> token index in the translated text, for tokens that end at the same place.

    Args:
        ends: for each token of the original, the character at which it ends.
        new_ends: the same of the translated text.
        translated: the translation.
    """
    # several tokens may end at one character, as the bytes of a rare one do; only the last has seen it whole
    last = {end: i for i, end in enumerate(ends)}
    new_last = {end: i for i, end in enumerate(new_ends)}
    places = {i: translated.place(end) for end, i in last.items()}
    return {i: new_last[place] for i, place in places.items() if place in new_last}


def make_dictionary(concept: Concept) -> dict[str, str]:
    """A dictionary from the concept alone: each of its names -> a name from the retain passages.

    Names are paired by frequency, so that a common name gets a common one. If there are no capitalised names, words are
    taken. Names and words that occur on the other side too are left out.
    """
    ours, others = concept.passages("forget"), concept.passages("retain")
    names, generic = concept.names(), Concept("", tuple(others), tuple(ours)).names()
    if not (names and generic):
        names, generic = _words(ours, others), _words(others, ours)
    if not generic:
        return {}
    generic = _by_count(generic, others)
    return {name: generic[i % len(generic)] for i, name in enumerate(_by_count(names, ours))}


def _words(passages: Sequence[Passage], others: Sequence[Passage]) -> list[str]:
    found, known = (
        dict.fromkeys(word for p in group for word in _WORD.findall(p.text.lower())) for group in (passages, others)
    )
    return [word for word in found if word not in known]


def _by_count(terms: Sequence[str], passages: Sequence[Passage]) -> list[str]:
    counts = Counter(word for p in passages for word in _WORD.findall(p.text))
    # a name of several words is as common as the rarest of them
    return sorted(terms, key=lambda term: -min((counts[word] for word in _WORD.findall(term)), default=0))
