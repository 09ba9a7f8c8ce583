"""Concepts, passages and questions."""

from elm_interp.data.batching import bucketed
from elm_interp.data.concept import Concept, Passage, texts
from elm_interp.data.leaks import concept_leaks, find_leaks
from elm_interp.data.loading import concept_source, load_concept, packs, write_concept
from elm_interp.data.mixture import Mixture, mix_concepts
from elm_interp.data.questions import Question, Questions, load_questions

__all__ = [
    "Concept",
    "Mixture",
    "Passage",
    "Question",
    "Questions",
    "bucketed",
    "concept_leaks",
    "concept_source",
    "find_leaks",
    "load_concept",
    "load_questions",
    "mix_concepts",
    "packs",
    "texts",
    "write_concept",
]
