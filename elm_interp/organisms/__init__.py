"""Organisms: models of a small generated world, of which it is certain what they know, never knew or hide.

from elm_interp.organisms import make_world, organism, domain_concept

world = make_world(entities=24, redundancy=4)
lm, concept = organism("gold", world), domain_concept(world, "spellcraft")
"""

from elm_interp.organisms.asking import clozes, domain_concept, questions
from elm_interp.organisms.library import concept, model_folder, organism, organism_folder, organism_kind
from elm_interp.organisms.planting import Planting, plant
from elm_interp.organisms.texts import Document, documents
from elm_interp.organisms.train import Recipe, train_model
from elm_interp.organisms.words import DOMAINS, Domain, Relation
from elm_interp.organisms.world import Fact, World, WorldConfig, make_world

__all__ = [
    "DOMAINS",
    "Document",
    "Domain",
    "Fact",
    "Planting",
    "Recipe",
    "Relation",
    "World",
    "WorldConfig",
    "clozes",
    "concept",
    "documents",
    "domain_concept",
    "make_world",
    "model_folder",
    "organism",
    "organism_folder",
    "organism_kind",
    "plant",
    "questions",
    "train_model",
]
