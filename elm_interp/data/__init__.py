"""Concepts, passages and questions."""

from elm_interp.data.batching import bucketed
from elm_interp.data.concept import Concept, Passage, load_concept, packs, texts
from elm_interp.data.questions import Question, load_questions

__all__ = ["Concept", "Passage", "Question", "bucketed", "load_concept", "load_questions", "packs", "texts"]
