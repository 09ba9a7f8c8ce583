"""Anchored terms: a concept's own names, each with a generic one to stand in its place, and where tokens go when it does.

anchors = make_anchors(concept)                         # {"Hogwarts": "Earthsea", ...}
moved = translate("Harry went to Hogwarts.", {"Hogwarts": "Mystic Academy"})
moved.text                                              # "Harry went to Mystic Academy."
moved.place(14)                                         # 14: before the term; None inside it; shifted after it
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elm_interp.data import Concept, Passage

_WORD = re.compile(r"\w[\w-]+")


@dataclass(frozen=True)
class Span:
    """One anchored term in a text, by characters."""

    term: str
    start: int
    end: int
    new_end: int
    """Where its translation ends in the translated text."""
    again: bool
    """Whether the term stood in the text before."""


@dataclass(frozen=True)
class Translated:
    """A text with its anchored terms replaced."""

    text: str
    spans: tuple[Span, ...]

    def place(self, end: int) -> int | None:
        """Where the first `end` characters of the original end in the translated text; None inside an anchored term."""
        shift = 0
        for span in self.spans:
            if end <= span.start:
                break
            if end < span.end:
                return None
            shift = span.new_end - span.end
        return end + shift


def translate(text: str, anchors: Mapping[str, str]) -> Translated:
    """Replace every anchored term that stands as whole words, the longest first."""
    if not anchors:
        return Translated(text, ())
    longest_first = sorted(anchors, key=lambda term: (-len(term), term))
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
    pieces: list[str] = []
    spans: list[Span] = []
    done, length = 0, 0
    for match in pattern.finditer(text):
        pieces += [text[done : match.start()], anchors[match[0]]]
        length += len(pieces[-2]) + len(pieces[-1])
        again = any(span.term == match[0] for span in spans)
        spans.append(Span(match[0], match.start(), match.end(), length, again))
        done = match.end()
    return Translated("".join([*pieces, text[done:]]), tuple(spans))


def position_map(ends: Sequence[int], moved_ends: Sequence[int], moved: Translated) -> dict[int, int]:
    """Token index in the original -> token index in the translated text, where both end at the same place.

    Args:
        ends: for each token of the original, the character where it ends.
        moved_ends: the same of the translated text.
        moved: the translation.
    """
    # several tokens may end at one character, as the bytes of a rare one do: the last of them has seen it whole
    last = {end: i for i, end in enumerate(ends)}
    moved_last = {end: i for i, end in enumerate(moved_ends)}
    places = {i: moved.place(end) for end, i in last.items()}
    return {i: moved_last[place] for i, place in places.items() if place in moved_last}


def make_anchors(concept: Concept) -> dict[str, str]:
    """A dictionary from the concept alone: its names, each with a name from the retain passages in its place.

    Names are paired by how often they occur, so that a common one stays common; a text without capitalised names gives its
    words instead. Both sides leave out what the other's passages hold.
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
        dict.fromkeys(w for p in some for w in _WORD.findall(p.text.lower())) for some in (passages, others)
    )
    return [word for word in found if word not in known]


def _by_count(terms: Sequence[str], passages: Sequence[Passage]) -> list[str]:
    counts = Counter(word for p in passages for word in _WORD.findall(p.text))
    # a name of several words is as common as the rarest of them
    return sorted(terms, key=lambda term: -min((counts[word] for word in _WORD.findall(term)), default=0))
