"""The models of a world by name: trained on first use, kept in the user's cache, checked by hash, rebuilt if damaged.

    original     knows every domain
    gold         the same texts, weights before training and order, but never a fact of the erased domain
    hiding       the original, edited so that it does not say what it knows of the erased domain
    random       not trained

A folder's name is a hash of everything that makes the model: the world with its words, the recipe, and `VERSION`.

    lm = load_model("organism:gold")                  # of the default world; "organism:gold@3" of that with seed 3
    concept = load_concept("organism:spellcraft")
    lm = organism("hiding", make_world(entities=24))  # of a world of your own
"""

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from elm_interp.data import Concept, concept_source
from elm_interp.errors import UnknownModelError, UnknownNameError, unknown
from elm_interp.models import HookedLM, load_model
from elm_interp.models.loading import cache_folder, cached_folder, model_source
from elm_interp.organisms import words
from elm_interp.organisms.asking import domain_concept
from elm_interp.organisms.hiding import hide
from elm_interp.organisms.train import Recipe, make_model, make_tokenizer, train_model
from elm_interp.organisms.world import World, make_world

KINDS = ("original", "gold", "hiding", "random")
VERSION = 1
"""Raise it when code changes what a model becomes; words, worlds and recipes are in the hash anyway."""


def organism(kind: str, world: World | None = None, recipe: Recipe | None = None, *, dtype: Any = "auto") -> HookedLM:
    """One of `KINDS`, trained if it is not in the cache.

    Args:
        kind: which.
        world: what it knows; the default world by default.
        recipe: its size and training.
        dtype: of the weights, as for `load_model`.

    Raises:
        UnknownModelError: another kind.
    """
    lm = load_model(organism_folder(kind, world, recipe), dtype=dtype)
    # not the folder's path, which would stand in every result
    lm.name = f"organism:{kind}" + (f"@{world.config.seed}" if world is not None and world.config.seed else "")
    return lm


def organism_folder(
    kind: str, world: World | None = None, recipe: Recipe | None = None, *, progress: bool = True
) -> Path:
    """The folder of one of `KINDS`, an ordinary model of transformers; trained if it is not in the cache.

    Raises:
        UnknownModelError: another kind.
    """
    if kind not in KINDS:
        raise unknown("organism", kind, KINDS, UnknownModelError)
    world, recipe = world or make_world(), recipe or Recipe()

    def build(folder: Path) -> None:
        if kind == "hiding":
            original = organism_folder("original", world, recipe, progress=progress)
            model = LlamaForCausalLM.from_pretrained(original, dtype=torch.float32)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(original)
            hide(model, tokenizer, world)
        elif kind == "random":
            tokenizer = make_tokenizer(world)
            model = make_model(world, recipe, tokenizer)
        else:
            without = world.config.erased if kind == "gold" else None
            label = f"organism:{kind}@{world.config.seed}"
            model, tokenizer = train_model(world, recipe, without=without, label=label, progress=progress)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    name = f"{kind}-{world.config.seed}-{organism_hash(kind, world, recipe)}"
    return cached_folder(cache_folder() / "organisms" / name, build)


def organism_hash(kind: str, world: World, recipe: Recipe) -> str:
    """A hash of everything that makes the model what it is."""
    # the domains' words are in the config
    wordings = {
        name: text for name, text in vars(words).items() if name.isupper() and name[0] != "_" and name != "DOMAINS"
    }
    config = world.config
    # what is erased plays no part in the original, so worlds that differ in it alone share one
    erased = config.erased if kind in ("gold", "hiding") else ""
    made_of = (VERSION, kind, config.resolved(), erased, config.entities, config.redundancy, config.seed)
    return sha256(repr((made_of, sorted(wordings.items()), recipe)).encode()).hexdigest()[:16]


@model_source("organism")
def model_folder(name: str) -> Path:
    """The folder behind "organism:NAME": a kind of the default world, with "@seed" for another seed.

    Raises:
        UnknownModelError: no such kind, or a seed that is no number.
    """
    kind, seed = _parts(name, "organism", KINDS, UnknownModelError)
    return organism_folder(kind, _world(seed))


@concept_source("organism")
def concept(name: str) -> Concept:
    """The concept behind "organism:NAME": a domain of the default world, with "@seed" for another seed.

    Raises:
        UnknownNameError: no such domain, or a seed that is no number.
    """
    domain, seed = _parts(name, "domain", make_world().domains, UnknownNameError)
    return domain_concept(_world(seed), domain)


@lru_cache(maxsize=8)
def _world(seed: int) -> World:
    return make_world(seed=seed)


def _parts(name: str, what: str, known: Iterable[str], error: type[UnknownNameError]) -> tuple[str, int]:
    known = list(known)
    first, at, seed = name.partition("@")
    if first not in known or (at and not seed.isdecimal()):
        raise unknown(what, name, [*known, f"{known[0]}@1"], error)
    return first, int(seed or 0)
