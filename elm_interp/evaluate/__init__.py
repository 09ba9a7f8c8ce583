"""Evaluation of behaviour: innocence, specificity and seamlessness of an erased model."""

from elm_interp.evaluate.choices import (
    ScoredQuestion,
    accuracy,
    evaluate_questions,
    longest_option,
    per_question,
    score_choices,
)
from elm_interp.evaluate.fluency import generations, samples
from elm_interp.evaluate.knowledge import scores
from elm_interp.evaluate.known import known_items
from elm_interp.evaluate.open_answers import free_answers, mentions_answer, same_answer
from elm_interp.evaluate.scorecard import beyond_context, card_metrics, destroyed, score_card, summary
from elm_interp.evaluate.specificity import kl_divergences, read_passages

__all__ = [
    "ScoredQuestion",
    "accuracy",
    "beyond_context",
    "card_metrics",
    "destroyed",
    "evaluate_questions",
    "free_answers",
    "generations",
    "kl_divergences",
    "known_items",
    "longest_option",
    "mentions_answer",
    "per_question",
    "read_passages",
    "same_answer",
    "samples",
    "score_card",
    "score_choices",
    "scores",
    "summary",
]
