"""Training of a world's models from scratch: a small Llama with a tokenizer of whole words, a minute on one CPU core.

Training begins with texts about a few entities. A model must first form the circuit that looks up a fact by its entity.
The more entities there are, the later it forms; with this start, half the tokens suffice.

    model, tokenizer = train_model(world, Recipe())                           # knows every domain
    model, tokenizer = train_model(world, Recipe(), without="spellcraft")     # never knew one
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from elm_interp.errors import ConfigError
from elm_interp.organisms.texts import documents
from elm_interp.organisms.world import World

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
Made = tuple[LlamaForCausalLM, PreTrainedTokenizerFast]
IGNORED = -100
"""Label of padding, which adds nothing to the loss."""


@dataclass(frozen=True)
class Recipe:
    """Size and training of a model. The defaults learn the default world: 1.0 M parameters, 0.7 M tokens."""

    n_layers: int = 4
    d_model: int = 128
    d_mlp: int = 384
    n_heads: int = 4
    core_passes: int = 14
    """Passes over the texts on the first entities, before all texts are read. They must be enough to memorise those (8
    were too few for one world of four); otherwise the other facts are learned late or not at all."""
    passes: int = 3
    """Passes over all texts."""
    batch: int = 32
    """Documents per step."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 50
    """Steps of linear warm-up."""
    decay_share: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    init: float = 0.05
    """Standard deviation of the initial weights."""


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words in lower case, without tokens for white space and without special tokens added."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *world.vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {f"{token[1:-1]}_token": token for token in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)  # type: ignore[no-untyped-call]


def make_model(world: World, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model; its weights depend only on the world's seed."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.d_model, intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers, num_attention_heads=recipe.n_heads, num_key_value_heads=recipe.n_heads,
        max_position_embeddings=512, initializer_range=recipe.init, tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(world.config.seed)
        model: LlamaForCausalLM = LlamaForCausalLM(config).float().eval()  # type: ignore[no-untyped-call]
        return model


def train_model(world: World, recipe: Recipe, *, without: str | None = None, progress: bool = True) -> Made:
    """Train a model on the world's texts; on one machine and number of threads, the same arguments give the same model.

    Args:
        world: what the texts are about.
        recipe: size and training.
        without: a domain whose facts are left out of the texts. The initial weights, the order of the texts and the
            learning rates stay the same. If nothing is left of a document, its step has one document fewer.
        progress: show a bar.
    """
    tokenizer = make_tokenizer(world)
    model = make_model(world, recipe, tokenizer).train()
    rows = [_ids(tokenizer, document.text) if document else None for document in documents(world, without)]
    steps = schedule(world, recipe)
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) is matrix], "weight_decay": decay}
        for matrix, decay in ((True, recipe.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    name = f"training on world {world.config.seed}" + (f" without {without}" if without else "")
    for number, step in enumerate(tqdm(steps, desc=name, leave=False, disable=not progress)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_share(number, len(steps), recipe)
        read = [ids for i in step if (ids := rows[i]) is not None]
        if read:
            optimizer.zero_grad()
            backward(model, read)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model.eval(), tokenizer


def schedule(world: World, recipe: Recipe) -> list[list[int]]:
    """Indices of each step's documents: first those of the core, then all, in an order fixed by the world's seed."""
    everything = documents(world)
    core = [i for i, document in enumerate(everything) if document is not None and document.core]
    random = world.random("training order")
    passes = [core] * recipe.core_passes + [[*range(len(everything))]] * recipe.passes
    order = [i for indices in passes for i in random.sample(indices, len(indices))]
    return [order[i : i + recipe.batch] for i in range(0, len(order), recipe.batch)]


def learning_rate_share(step: int, steps: int, recipe: Recipe) -> float:
    """Share of the full learning rate at a step: linear warm-up, constant, linear decay to zero."""
    return min((step + 1) / recipe.warmup, (steps - step) / (recipe.decay_share * steps), 1.0)


def backward(model: LlamaForCausalLM, rows: Sequence[Sequence[int]]) -> float:
    """Add the gradient of the mean loss (nats per token) over rows of ids, and return that loss.

    Short and long rows run separately, which saves a third of the padding. Padding is last, so no mask is needed.

    Raises:
        ConfigError: the loss is not finite.
    """
    total = sum(len(row) - 1 for row in rows)
    ordered = sorted(rows, key=len)
    loss = 0.0
    for half in filter(None, (ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :])):
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in half], batch_first=True, padding_value=IGNORED)
        logits = model(input_ids=ids[:, :-1].clamp(min=0), use_cache=False).logits
        labels = ids[:, 1:].flatten()
        part = nn.functional.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")
        (part / total).backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach()) / total
    if not math.isfinite(loss):
        raise ConfigError(f"the loss is {loss}; train with a smaller learning_rate.")
    return loss


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
