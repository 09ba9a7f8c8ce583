"""What an eraser did to behaviour: innocence, specificity, seamlessness. Importing this registers their metrics."""

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
from elm_interp.evaluate.perplexity import Sums, perplexity_of, perplexity_ratio
from elm_interp.evaluate.scorecard import PATTERNS, destroyed, score_card, summary
from elm_interp.evaluate.specificity import kl_divergences, read_passages

__all__ = [
    "PATTERNS",
    "ScoredQuestion",
    "Sums",
    "accuracy",
    "destroyed",
    "evaluate_questions",
    "generations",
    "kl_divergences",
    "longest_option",
    "per_question",
    "perplexity_of",
    "perplexity_ratio",
    "read_passages",
    "samples",
    "score_card",
    "score_choices",
    "scores",
    "summary",
]
