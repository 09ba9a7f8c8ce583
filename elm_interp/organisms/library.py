"""The models of a world by name: made on first use, kept in the user's cache, checked by hash, rebuilt if damaged.

    original     knows every domain
    gold         same texts, initial weights and order, but without the facts of the erased domain
    hiding       the original, edited so that it does not say what it knows of the erased domain
    random       not trained

A folder's name holds a hash of everything that makes the model: the world with its words, the recipe, `VERSION`. The
trained models of the default world ship as 16-bit weights under these names (`analyses/make_organisms.py`), so nobody
waits for their training.

    lm = load_model("organism:gold")                  # of the default world; "organism:gold@3" for seed 3
    concept = load_concept("organism:spellcraft")
    lm = organism("hiding", make_world(entities=24))  # of your own world

Another kind is a function that makes a model and its tokenizer:

    @organism_kind("half-trained", erased=False)
    def half_trained(world, recipe, progress):
        return train_model(world, replace(recipe, passes=1), progress=progress)
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from elm_interp.data import Concept, concept_source
from elm_interp.errors import UnknownModelError, UnknownNameError, unknown
from elm_interp.files import hash_of
from elm_interp.models import HookedLM, load_model
from elm_interp.models.loading import cache_folder, cached_or_spare, model_source
from elm_interp.organisms import words
from elm_interp.organisms.asking import domain_concept
from elm_interp.organisms.hiding import hide
from elm_interp.organisms.train import Made, Recipe, make_model, make_tokenizer, train_model
from elm_interp.organisms.world import World, make_world
from elm_interp.registry import ORGANISMS

WEIGHTS = Path(__file__).parent / "weights"
"""Holds the weights that ship: a 16-bit safetensors file for each trained model of the default world."""
VERSION = 1
"""Raise it when code changes what a model becomes; words, worlds and recipes are in the hash anyway."""
Build = Callable[[World, Recipe, bool], Made]


@dataclass(frozen=True)
class Kind:
    """A declared kind of organism."""

    build: Build
    """(world, recipe, progress) -> model and tokenizer."""
    erased: bool
    """Whether the model depends on which domain is erased. If not, worlds that differ only in it share the model."""


def organism_kind(name: str, *, erased: bool = True) -> Callable[[Build], Build]:
    """Declare a function (world, recipe, progress) -> (model, tokenizer) as a kind of organism.

    Args:
        name: of the kind.
        erased: whether the model depends on which domain is erased.

    Raises:
        ConfigError: the name is taken by another function.
    """

    def declare(build: Build) -> Build:
        ORGANISMS.add(name, Kind(build, erased), origin=build)
        return build

    return declare


@organism_kind("original", erased=False)
def _original(world: World, recipe: Recipe, progress: bool) -> Made:
    return train_model(world, recipe, progress=progress)


@organism_kind("gold")
def _gold(world: World, recipe: Recipe, progress: bool) -> Made:
    return train_model(world, recipe, without=world.config.erased, progress=progress)


@organism_kind("hiding")
def _hiding(world: World, recipe: Recipe, progress: bool) -> Made:
    folder = organism_folder("original", world, recipe, progress=progress)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    hide(model, tokenizer, world)
    return model, tokenizer


@organism_kind("random", erased=False)
def _random(world: World, recipe: Recipe, progress: bool) -> Made:
    tokenizer = make_tokenizer(world)
    return make_model(world, recipe, tokenizer), tokenizer


def organism(kind: str, world: World | None = None, recipe: Recipe | None = None, *, dtype: Any = "auto") -> HookedLM:
    """A model of one of the declared kinds, trained if it is not in the cache.

    Args:
        kind: "original", "gold", "hiding", "random" or another declared kind.
        world: what it knows; by default the default world.
        recipe: its size and training.
        dtype: of the weights, as for `load_model`.

    Raises:
        UnknownModelError: no such kind.
    """
    lm = load_model(organism_folder(kind, world, recipe), dtype=dtype)
    # every result holds the name; the folder's path should not be in it
    lm.name = f"organism:{kind}" + (f"@{world.config.seed}" if world is not None and world.config.seed else "")
    return lm


def organism_folder(
    kind: str, world: World | None = None, recipe: Recipe | None = None, *, progress: bool = True
) -> Path:
    """The folder of an organism, an ordinary model of transformers; trained if it neither ships nor is in the cache.

    Raises:
        UnknownModelError: no such kind.
    """
    declared: Kind = ORGANISMS[kind]
    world, recipe = world or make_world(), recipe or Recipe()

    made: list[Any] = []
    name = f"{kind}-{world.config.seed}-{organism_hash(kind, world, recipe)}"
    shipped = WEIGHTS / f"{name}.safetensors"

    def build(folder: Path) -> None:
        if not made:  # trained once, even if it must be written twice
            made.extend(
                read_shipped(shipped, world, recipe) if shipped.is_file() else declared.build(world, recipe, progress)
            )
        for part in made:
            part.save_pretrained(folder)

    return cached_or_spare(cache_folder() / "organisms" / name, build)


def read_shipped(file: Path, world: World, recipe: Recipe) -> Made:
    """The model and tokenizer of 16-bit weights, in float32."""
    tokenizer = make_tokenizer(world)
    model = make_model(world, recipe, tokenizer)
    model.load_state_dict({name: weight.float() for name, weight in load_file(file).items()})
    return model, tokenizer


def organism_hash(kind: str, world: World, recipe: Recipe) -> str:
    """A hash of everything that makes the model what it is."""
    config = {name: getattr(world.config, name) for name in ("entities", "redundancy", "seed")}
    config["domains"] = [asdict(domain) for domain in world.config.resolved()]  # cut to the world's relations
    config["erased"] = world.config.erased if ORGANISMS[kind].erased else ""
    made_of = {"world": config, "words": words.wordings(), "recipe": asdict(recipe)}
    return hash_of({"version": VERSION, "kind": kind, **made_of})


@model_source("organism")
def model_folder(name: str) -> Path:
    """The folder of "organism:NAME": a kind of the default world, with "@seed" for another seed.

    Raises:
        UnknownModelError: no such kind, or a seed that is no number.
    """
    kind, seed = _parts(name, "organism", ORGANISMS, UnknownModelError)
    return organism_folder(kind, _world(seed))


@concept_source("organism")
def concept(name: str) -> Concept:
    """The concept of "organism:NAME": a domain of the default world, with "@seed" for another seed.

    Raises:
        UnknownNameError: no such domain, or a seed that is no number.
    """
    domain, seed = _parts(name, "domain", make_world().domains, UnknownNameError)
    return domain_concept(_world(seed), domain)


@lru_cache(maxsize=8)
def _world(seed: int) -> World:
    return make_world(seed=seed)


def _parts(name: str, what: str, known: Collection[str], error: type[UnknownNameError]) -> tuple[str, int]:
    first, at, seed = name.partition("@")
    if first not in known or (at and not seed.isdecimal()):
        raise unknown(what, name, [*known, f"{next(iter(known))}@1"], error)
    return first, int(seed or 0)
