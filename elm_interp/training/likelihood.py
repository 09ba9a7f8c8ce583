"""Likelihood of whole texts: samples and log-probabilities for methods that lower or keep it.

texts = with_frozen(lm, passages_as_texts(lm, passages, "erase", max_tokens=160))
text_log_probs(lm, texts)          # a sum for each text, in nats, with a graph
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.data import Passage
from elm_interp.data.batching import bucketed
from elm_interp.errors import not_finite
from elm_interp.models import HookedLM
from elm_interp.models.unembedding import differentiable, log_prob
from elm_interp.training.objective import sample_kind
from elm_interp.training.passages import first_target, passage_rows
from elm_interp.training.settings import UNCLIPPED

TOFU = {
    **UNCLIPPED,
    **{"forget_batch": 32, "retain_batch": 32, "lr": 1e-5, "warmup": 12, "schedule": "linear", "weight_decay": 0.01},
}
"""Training that both methods' published experiments on TOFU (Maini et al. 2024) share: 400 texts an epoch, the first
of them warm-up."""


@sample_kind
@dataclass(frozen=True)
class Text:
    """A text whose likelihood is trained."""

    term: str
    """The loss term it belongs to."""
    id: str
    """The passage it came from, for error messages."""
    ids: tuple[int, ...]
    """Token ids."""
    start: int
    """Index of the last token before those that count."""
    frozen: float = 0.0
    """Log-probability of the text by the frozen model, in nats, summed over its tokens; for methods that compare."""

    @property
    def positions(self) -> int:
        """Number of tokens that count."""
        return len(self.ids) - 1 - self.start

    def __len__(self) -> int:
        return len(self.ids)


def passages_as_texts(lm: HookedLM, passages: Sequence[Passage], term: str, *, max_tokens: int) -> list[Text]:
    """The passages as samples.

    Raises:
        DataError: no passage has a token to predict.
    """
    kept, rows = passage_rows(lm, passages, max_tokens)
    return [Text(term, p.id, tuple(row), first_target(lm)) for p, row in zip(kept, rows, strict=True)]


def with_frozen(lm: HookedLM, texts: Sequence[Text], *, progress: bool = False) -> list[Text]:
    """The same texts, each with its log-probability by the model without an adapter.

    Raises:
        NotFiniteError: one is NaN or infinite.
    """
    found = list(texts)
    with torch.no_grad(), lm.adapter(None):
        batches = bucketed([len(text) for text in texts])
        for batch in tqdm(batches, desc="targets", leave=False, disable=not progress):
            for i, total in zip(batch, text_log_probs(lm, [texts[i] for i in batch]).tolist(), strict=True):
                if not math.isfinite(total):
                    raise not_finite(f"the log-probability of passage {texts[i].id!r}", lm.dtype)
                found[i] = replace(texts[i], frozen=total)
    return found


def text_log_probs(lm: HookedLM, texts: Sequence[Text]) -> Float[Tensor, " text"]:
    """Log-probability of each text, in nats, summed over its tokens; with a graph where gradients are on."""
    hidden = lm.hidden(lm.pad([text.ids for text in texts]), grad=torch.is_grad_enabled())
    states = torch.cat([hidden[k, t.start : len(t.ids) - 1] for k, t in enumerate(texts)])
    ids = torch.cat([torch.tensor(t.ids[t.start + 1 :]) for t in texts]).to(lm.device)
    each = differentiable(lm, states, lambda rows, logits: log_prob(logits, ids[rows]))
    return torch.stack([part.sum() for part in torch.split(each, [t.positions for t in texts])])
