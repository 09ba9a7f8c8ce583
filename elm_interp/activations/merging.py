"""Merging stores that several workers wrote: which of them fit together, and copying their shards.

made = plan([(folder, index), (other_folder, other_index)], append=False)
made.problems                      # empty if they fit together
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from elm_interp.activations.index import (
    Entry,
    Index,
    Key,
    joined,
    not_further,
    other_examples,
    read_table,
    same_weights,
    write_table,
)
from elm_interp.activations.shards import fresh_folder


@dataclass
class Plan:
    """What a merged store will hold, and from where; or why it cannot be made."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    sources: dict[Key, list[tuple[Path, Entry]]] = field(default_factory=dict)
    """For each entry, the stores that hold parts of it, in the order of the examples."""
    problems: list[str] = field(default_factory=list)

    def carry_out(self, root: Path, index: Index, taken: list[Path]) -> list[str]:
        """Copy the shards of other stores into the store at `root`, and list them in its index.

        Args:
            root: folder of the store.
            index: of the store, changed in place.
            taken: gets the folders that are made, so that the caller can remove them after an error.

        Returns:
            Tables that the index no longer names.
        """
        for key, sources in self.sources.items():
            shards: list[dict[str, Any]] = []
            first = 0
            for folder, entry in sources:
                shards += entry.shards if folder == root else _copied(folder, entry, root, first, taken)
                first += entry.n
            index.entries[key] = joined(sources[0][1], shards, self.tables[key[0]])
        before = dict(index.tables)
        for dataset, examples in self.tables.items():
            n = len(read_table(root, before[dataset])) if dataset in before else -1
            if n != len(examples):
                index.tables[dataset] = write_table(root, dataset, examples)
        return [table for dataset, table in before.items() if index.tables[dataset] != table]


def plan(parts: Sequence[tuple[Path, Index]], append: bool) -> Plan:
    """Plan how stores become one.

    Args:
        parts: folders and indices of the stores.
        append: put examples of a dataset that several stores hold one below the other; otherwise they must be the same.
    """
    made = Plan()
    for folder, index in parts:
        for dataset, table in index.tables.items():
            examples, entries = read_table(folder, table), index.of(dataset)
            if dataset not in made.tables:
                made.tables[dataset] = examples
                made.sources |= {key: [(folder, entry)] for key, entry in entries.items()}
            else:
                add = _add_below if append else _add_beside
                made.problems += [f"{folder}: {problem}" for problem in add(made, folder, dataset, examples, entries)]
    made.problems += _clashes([found for sources in made.sources.values() for found in sources])
    return made


def _add_below(made: Plan, folder: Path, dataset: str, examples: pd.DataFrame, entries: dict[Key, Entry]) -> list[str]:
    """Add further examples of a dataset, at all its checkpoints; returns why they cannot be added."""
    known = made.tables[dataset]
    if problems := not_further(dataset, known, examples):
        return problems
    if differ := {key for key in made.sources if key[0] == dataset} ^ entries.keys():
        places = ", ".join(sorted(f"{checkpoint} ({site})" for _, checkpoint, site in differ))
        return [f"examples of {dataset!r} can be added only at all its checkpoints, not {places}"]
    made.tables[dataset] = pd.concat([known, examples], ignore_index=True)
    for key, entry in entries.items():
        made.sources[key].append((folder, entry))
    return []


def _add_beside(made: Plan, folder: Path, dataset: str, examples: pd.DataFrame, entries: dict[Key, Entry]) -> list[str]:
    """Add further checkpoints or sites of a dataset; returns why they cannot be added."""
    other = other_examples(dataset, made.tables[dataset], examples)
    problems = [other] if other else []
    for key, entry in entries.items():
        where, kept = made.sources.setdefault(key, [(folder, entry)])[0]
        if kept is not entry and (not entry.fingerprint or kept.fingerprint != entry.fingerprint):
            problems.append(f"{_named(entry)} is in {where} too, made from something else")
    return problems


def _clashes(found: Sequence[tuple[Path, Entry]]) -> list[str]:
    """Entries that differ in what they must have in common."""
    said: dict[tuple[str, str], dict[Any, None]] = {}
    for _, entry in found:
        dataset, checkpoint = f"dataset {entry.dataset!r} at site {entry.site!r}", f"checkpoint {entry.checkpoint!r}"
        values = {
            ("base models", checkpoint if entry.untrained else ""): entry.model,
            ("adapters", checkpoint): entry.adapter,
            ("dtypes", dataset): entry.dtype,
            ("(layers, d_model)", dataset): (entry.layers, entry.d_model),
            ("positions", dataset): entry.positions,
            ("further settings", dataset): str(entry.meta),
            ("weights or settings", _named(entry)): same_weights(entry.fingerprint),
        }
        for place, value in values.items():
            if value != "":
                said.setdefault(place, {})[value] = None
    return [
        f"{f'{where} has' if where else 'they have'} several {what}: {', '.join(map(str, several))}"
        for (what, where), several in said.items()
        if len(several) > 1
    ]


def _copied(folder: Path, entry: Entry, root: Path, first: int, taken: list[Path]) -> list[dict[str, Any]]:
    target = fresh_folder(root, f"{entry.dataset}/{entry.checkpoint}")
    taken.append(target)
    shards = []
    for number, shard in enumerate(entry.shards):
        path = target / f"shard-{number:05d}.safetensors"
        shutil.copyfile(folder / shard["file"], path)
        shards.append(shard | {"file": path.relative_to(root).as_posix(), "first": first + shard.get("first", 0)})
    return shards


def _named(entry: Entry) -> str:
    return f"{entry.dataset!r} at {entry.checkpoint!r} ({entry.site or 'no site'})"
