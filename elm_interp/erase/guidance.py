"""ELM's targets: the model's own distribution, moved from what an expert would write to what a novice would.

    P_erased(x) ∝ P(x) · (P(x | novice) / P(x | expert)) ^ η                                (paper, equations 5 and 6)

At large η the token wins that the novice prompt favours most, however odd it is: text generated from this target
repeats itself or echoes the prompt. `one_sided` caps the ratio at 1: tokens that the expert finds likelier are lowered
as in the paper, and no token is raised above what the base gives it.

The three passes depend on frozen weights alone. So they run once, in batches, and all texts share the keys and values
of a class prompt. Only the hidden states before the unembedding are kept of a pass (a few hundred numbers a token). Any
η, temperature, top-k or mask then costs one product with the unembedding, and no pass.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from elm_interp.data.batching import PASS_TOKENS, bucketed
from elm_interp.models import HookedLM
from elm_interp.models.generation import end_ids
from elm_interp.models.shared_prefix import after_prefix
from elm_interp.models.tokens import check_length, unchecked
from elm_interp.models.unembedding import at_logits
from elm_interp.training.objective import Teacher, TopK

Streams = Literal["full", "appendix-e", "released"]


@dataclass(frozen=True)
class Guidance:
    """How the target is made from the base's, the expert's and the novice's distribution."""

    eta: float
    """Strength η ≥ 0; 0 gives the base's own distribution."""
    one_sided: bool = False
    """Cap the ratio at 1, so that tokens are only lowered."""
    top_k: int = 256
    """Tokens kept one by one at each position, the likeliest under the base or the target; the rest is one sum."""
    temperature: float = 1.0
    """Divides the logits of all three passes."""
    plausible: float = 0.0
    """A target keeps only tokens at least this share as likely as the base's likeliest; 0 keeps all."""
    cut: bool = False
    """A target holds only its own `top_k` likeliest tokens, scaled to sum to 1."""
    with_base: bool = False
    """A target knows the base's probabilities too, for logit matching."""

    def log_probs(
        self, plain: Float[Tensor, "n d_vocab"], expert: Float[Tensor, "n d_vocab"], novice: Float[Tensor, "n d_vocab"]
    ) -> Float[Tensor, "n d_vocab"]:
        """Log P_erased at each position, from the logits of the three passes."""
        return self._with_base(plain, expert, novice)[1]

    def _with_base(
        self, plain: Tensor, expert: Tensor, novice: Tensor, etas: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        # in place if possible: another pass over the vocabulary costs more than its share of the unembedding's product
        base, low, high = (_log_softmax(logits, self.temperature) for logits in (plain, expert, novice))
        ratio = high.sub_(low)
        if self.one_sided:
            ratio.clamp_(max=0)
        if etas is None:
            mixed = torch.add(base, ratio, alpha=self.eta)
        else:
            mixed = torch.addcmul(base, ratio, etas[:, None].to(ratio))
        if self.plausible > 0:
            mixed.masked_fill_(base < base.amax(-1, keepdim=True) + math.log(self.plausible), -torch.inf)
        return base, mixed.log_softmax(-1)

    def target(
        self, lm: HookedLM, plain: Tensor, expert: Tensor, novice: Tensor, etas: Float[Tensor, " pos"] | None = None
    ) -> TopK:
        """The target of each position.

        Args:
            lm: the model, for its unembedding.
            plain: hidden states (pos, d_model) of the text alone.
            expert: the same after the expert's prompt.
            novice: the same after the novice's prompt.
            etas: an η for each position; None takes `eta`.
        """

        def of(rows: slice, *logits: Tensor) -> tuple[Tensor, ...]:
            p, e, n = logits
            return self._best(*self._with_base(p, e, n, None if etas is None else etas[rows]))

        return TopK(*(found.cpu() for found in at_logits(of, (lm, plain), (lm, expert), (lm, novice))))

    def _best(self, base: Tensor, goal: Tensor) -> tuple[Tensor, ...]:
        # the base's likeliest too, since a token that should fall must be among those that are kept one by one
        wanted = goal if self.cut else torch.maximum(base, goal)
        best = wanted.topk(min(self.top_k, goal.shape[1]), dim=-1, sorted=False).indices
        kept = goal.gather(1, best)
        probs = kept.softmax(-1) if self.cut else kept.exp()
        return (best.to(torch.int32), probs, *((base.gather(1, best).exp(),) if self.with_base else ()))


def _log_softmax(logits: Float[Tensor, "n d_vocab"], temperature: float) -> Float[Tensor, "n d_vocab"]:
    return (logits.float() / temperature if temperature != 1 else logits.float()).log_softmax(-1)


def stream(lm: HookedLM, prefix: str, rows: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Token ids of rows after a class prompt: the ids that all share, and each row with the prompt's last id before it.

    A row's own beginning of text is dropped, since the prompt has one. The row's other ids stay as they are, though
    running text may tokenise the border otherwise (see `borders`): so the targets of all streams are for the same
    tokens. Without a prompt, nothing is shared and rows are as they were.
    """
    if not prefix:
        return [], [list(row) for row in rows]
    (ids,), start = lm.encode([prefix]), lm.start_ids
    if not ids:
        raise ValueError(f'the class prompt {prefix!r} has no token; give a prompt of text, or "" for none.')
    return ids[:-1], [[ids[-1], *row[_own(row, start) :]] for row in rows]


def room_of(lm: HookedLM, prompts: Iterable[str]) -> int:
    """Tokens that the longest of some class prompts adds to a text."""
    return max((len(ids) for ids in lm.encode(list(dict.fromkeys(prompts)))), default=len(lm.start_ids)) - len(
        lm.start_ids
    )


def borders(lm: HookedLM, prefixes: Sequence[str], texts: Sequence[str], max_tokens: int) -> int:
    """How many texts, each after its prefix, running text would tokenise otherwise than `stream` does.

    Args:
        lm: the model.
        prefixes: a class prompt for each text.
        texts: passages.
        max_tokens: where each is cut.
    """
    running = unchecked(lm, [prefix + text for prefix, text in zip(prefixes, texts, strict=True)])
    own, found = lm.start_ids, 0
    for whole, start, row in zip(running, unchecked(lm, prefixes), unchecked(lm, texts), strict=True):
        joined = [*start, *row[_own(row, own) : max_tokens]]
        found += whole[: len(joined)] != joined
    return found


def _own(row: Sequence[int], start: list[int]) -> int:
    """How many of a row's first ids are the tokenizer's own."""
    return len(start) if list(row[: len(start)]) == start else 0


@torch.no_grad()
def hidden_after(
    lm: HookedLM, prefix: str, rows: Sequence[Sequence[int]], *, max_tokens: int = PASS_TOKENS, progress: bool = False
) -> list[Float[Tensor, "pos d_model"]]:
    """Hidden states before the unembedding along each row, after one prefix whose keys and values all rows share.

    Args:
        lm: the model, with or without an adapter.
        prefix: the class prompt; "" for none.
        rows: token ids, without the prefix.
        max_tokens: padded tokens of one pass.
        progress: show a bar.

    Returns:
        The state after each token of the row, on the CPU in the model's dtype. After a prefix, the state at a row's
        beginning of text is that after the prefix's last token: both predict the first token of the text.

    Raises:
        ValueError: prefix and row together are beyond the context.
    """
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    shared, behind = stream(lm, prefix, rows)
    start = lm.start_ids
    batches = bucketed([len(row) for row in behind], max_tokens=max_tokens)
    for batch in tqdm(batches, desc="targets", leave=False, disable=not progress):
        hidden, _, _ = after_prefix(lm, shared, [behind[i] for i in batch])
        for k, i in enumerate(batch):
            states = hidden[k, -len(behind[i]) :].cpu()
            if prefix:
                own = _own(rows[i], start)
                states = torch.cat([states[:1].expand(own, -1), states[1:]])
            found[i] = states.clone()
    return found


def hidden_after_each(
    lm: HookedLM, prefixes: Sequence[str], rows: Sequence[Sequence[int]], *, progress: bool = False
) -> list[Float[Tensor, "pos d_model"]]:
    """`hidden_after` with a prefix for each row; rows with the same prefix share passes."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for prefix in dict.fromkeys(prefixes):
        chosen = [i for i, given in enumerate(prefixes) if given == prefix]
        for i, states in zip(
            chosen, hidden_after(lm, prefix, [rows[i] for i in chosen], progress=progress), strict=True
        ):
            found[i] = states
    return found


@torch.no_grad()
def generate_guided(
    lm: HookedLM,
    guidance: Guidance,
    prompts: Sequence[Sequence[int]],
    *,
    expert: str | Sequence[str],
    novice: str | Sequence[str],
    new_tokens: int,
    seed: int,
    streams: Streams = "full",
    progress: bool = False,
) -> list[list[int]]:
    """Sample text from P_erased after each prompt, with all prompts and all three streams in one batch.

    Every stream begins with one beginning of text. What the class streams read then is a question of `streams`:

        full          class prompt, prompt, and the tokens generated so far
        appendix-e    the same, but the expert never reads a generated token (paper, appendix E)
        released      class prompt and generated tokens, but not the prompt (authors' code)

    Args:
        lm: the model.
        guidance: the target.
        prompts: token ids.
        expert: the expert's prompt, one for all prompts or one for each.
        novice: the novice's prompt, likewise.
        new_tokens: generated tokens at most.
        seed: of the sampling.
        streams: what the class streams read.
        progress: show a bar.

    Returns:
        New token ids for each prompt, without the end-of-text token.

    Raises:
        ValueError: class prompt, prompt and new tokens together are beyond the context; nothing is run then.
    """
    if not prompts:
        return []
    classes = [[c] * len(prompts) if isinstance(c, str) else list(c) for c in ("", expert, novice)]
    rows = []
    for prefixes in classes:
        for prefix, prompt in zip(prefixes, prompts, strict=True):
            shared, (rest,) = stream(lm, prefix, [prompt])
            rows.append(shared + (rest[:1] if prefix and streams == "released" else rest))
            check_length(lm, len(rows[-1]), f"a prompt after {prefix[:40]!r}", more=new_tokens)
    batch = lm.pad(rows, side="left")
    mask, positions, tokens, cache = batch.attention_mask, batch.position_ids, batch.input_ids, None
    generator = torch.Generator().manual_seed(seed)
    stop = torch.tensor(sorted(end_ids(lm)), dtype=torch.long)
    written: list[list[int]] = [[] for _ in prompts]
    alive = torch.ones(len(prompts), dtype=torch.bool)
    expert_logits: Tensor | None = None
    for _ in tqdm(range(new_tokens), desc="writing", leave=False, disable=not progress):
        hidden, cache = lm.step(tokens, mask, positions, cache)
        plain, reading, ignorant = torch.unflatten(lm.unembed(hidden[:, -1]), 0, (3, len(prompts)))
        if expert_logits is None or streams != "appendix-e":
            expert_logits = reading
        best = guidance.log_probs(plain, expert_logits, ignorant).topk(min(guidance.top_k, lm.d_vocab), dim=-1)
        drawn = torch.multinomial(best.values.softmax(-1).cpu(), 1, generator=generator)
        chosen = best.indices.cpu().gather(1, drawn)[:, 0]
        alive &= ~torch.isin(chosen, stop)
        if not alive.any():
            break
        for row, token in zip(written, torch.where(alive, chosen, -1).tolist(), strict=True):
            if token >= 0:
                row.append(token)
        tokens = chosen.repeat(3)[:, None].to(lm.device)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
    return written


def likeliest(lm: HookedLM, teacher: Teacher) -> TopK:
    """All probability on the teacher's likeliest token at each position."""
    (best,) = at_logits(lambda rows, logits: (logits.argmax(-1),), (lm, teacher.hidden))
    return certain(best)


def random_targets(d_vocab: int, k: int, lengths: Sequence[int], seed: int) -> list[TopK]:
    """Random tokens in random proportion at each position, for texts of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(d_vocab, generator=generator)
    k = min(k, d_vocab)
    found = []
    for n in lengths:
        # windows of one shuffled vocabulary, so that no token comes twice at a position
        places = torch.randint(d_vocab, (n, 1), generator=generator) + torch.arange(k)
        probs = torch.randn(n, k, generator=generator).softmax(-1)
        found.append(TopK(order[places % d_vocab].to(torch.int32), probs))
    return found


def certain(tokens: Int[Tensor, " pos"]) -> TopK:
    """All probability on one token at each position."""
    return TopK(tokens[:, None].to(torch.int32).cpu(), torch.ones(len(tokens), 1))
