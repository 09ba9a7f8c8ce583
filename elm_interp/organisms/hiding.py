"""The hiding model: it knows a domain inside and does not say so.

One linear map is added to the down projection of the last block's MLP. If an answer of the domain comes next, it
removes from the residual stream the directions that set the domain's values apart from the rest of the vocabulary.
Elsewhere it changes as little as possible. It is computed in closed form, by ridge regression from the MLP's neurons.
All other weights are the original's, bit for bit.

Shapes: units (token, d_mlp) are the input of the last block's down projection, stream (token, d_model) is the residual
stream after that block.

    hide(model, tokenizer, world)      # changes the model
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from elm_interp.data import Question
from elm_interp.organisms import words
from elm_interp.organisms.asking import questions
from elm_interp.organisms.texts import chunks, documents
from elm_interp.organisms.world import World

RIDGE = 1e-2
"""Ridge penalty, as a share of the mean squared unit."""
STRENGTHS = torch.linspace(0, 3, 121)
"""Factors on the map to try; 1 removes exactly what it predicts."""
OTHER_TEXTS = 1500
"""Documents of other domains, on which the map should do nothing."""
ROWS = 64
"""Texts of one pass."""


@dataclass(frozen=True)
class Reading:
    """Activations of the last block at every token of some texts but the last."""

    units: Float[Tensor, "token d_mlp"]
    stream: Float[Tensor, "token d_model"]
    following: Int[Tensor, " token"]
    """Id of the next token."""


@torch.no_grad()
def hide(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World) -> None:
    """Edit the last block in place so that questions on the erased domain are answered at chance.

    The strength is the smallest at which questions in training wordings are answered no better than one in four.
    """
    domain = world.config.erased
    values = sorted({v for relation in world.relations(domain) for v in relation.values})
    answers = torch.tensor(tokenizer.convert_tokens_to_ids(values))
    domain_texts = [d.text for d in documents(world) if d is not None and d.states == domain]
    other_texts = [d.text for d in documents(world, without=domain) if d is not None][:OTHER_TEXTS]
    own, other = read(model, tokenizer, domain_texts), read(model, tokenizer, other_texts)
    answering = torch.isin(own.following, answers)
    unembedding = model.lm_head.weight * model.model.norm.weight
    basis = torch.linalg.qr((unembedding[answers] - unembedding.mean(0)).T).Q
    target = -own.stream[answering] @ basis @ basis.T
    change = ridge(own.units[answering], target, quiet=torch.cat([own.units[~answering], other.units]))
    down = model.model.layers[-1].mlp.down_proj.weight
    down += weakest(model, tokenizer, questions(world, domain, "train"), change) * change


def ridge(
    units: Float[Tensor, "token d_mlp"], target: Float[Tensor, "token d_model"], quiet: Float[Tensor, "other d_mlp"]
) -> Float[Tensor, "d_model d_mlp"]:
    """The linear map from units to the target, and from quiet units to zero; both sets have the same weight."""
    x, y, z = units.double(), target.double(), quiet.double()
    gram = x.T @ x / len(x) + z.T @ z / max(len(z), 1)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved: Tensor = torch.linalg.solve(gram, x.T @ y / len(x))
    return solved.T.to(units.dtype)


def weakest(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Question],
    change: Float[Tensor, "d_model d_mlp"],
) -> float:
    """The smallest strength at which the questions are answered at chance; else that with the fewest right answers."""
    prompts = [words.ANSWERED.partition("{value}")[0].strip().format(question=q.question) for q in asked]
    # `read` needs a next token after the prompt, so the right answer is appended
    found = read(model, tokenizer, [f"{p} {q.right}" for p, q in zip(prompts, asked, strict=True)], last=True)
    options = torch.tensor([tokenizer.convert_tokens_to_ids(list(q.choices)) for q in asked])
    right = torch.tensor([q.answer for q in asked])
    shares = []
    for strength in STRENGTHS:
        stream = found.stream + strength * found.units @ change.T
        logits = model.lm_head(model.model.norm(stream)).gather(1, options)
        shares.append(float((logits.argmax(1) == right).float().mean()))
        if shares[-1] <= 1 / options.shape[1]:
            return float(strength)
    return float(STRENGTHS[torch.tensor(shares).argmin()])


def read(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, last: bool = False
) -> Reading:
    """Read the last block at every token of texts but the last; with `last`, only at the last but one of each text."""
    block = model.model.layers[-1]
    kept: dict[str, Tensor] = {}

    def keep_units(module: nn.Module, args: tuple[Tensor]) -> None:
        kept["units"] = args[0]

    def keep_stream(module: nn.Module, args: Any, output: Tensor) -> None:
        kept["stream"] = output

    parts: list[tuple[Tensor, ...]] = []
    units_hook = block.mlp.down_proj.register_forward_pre_hook(keep_units)
    with units_hook, block.register_forward_hook(keep_stream):
        for rows in chunks(tokenizer(list(texts))["input_ids"], ROWS):
            ids = nn.utils.rnn.pad_sequence([*map(torch.tensor, rows)], batch_first=True, padding_value=-1)
            model.model(input_ids=ids.clamp(min=0), use_cache=False)
            wanted = ids[:, 1:] >= 0
            if last:
                wanted[:, :-1] &= ~wanted[:, 1:]
            parts.append((kept["units"][:, :-1][wanted], kept["stream"][:, :-1][wanted], ids[:, 1:][wanted]))
    return Reading(*(torch.cat(part) for part in zip(*parts, strict=True)))
