"""What belongs together: which stores may become one, which examples may follow others, and the copying of it.

made = plan([(folder, index), (other_folder, other_index)], append=False)
made.problems                      # empty where they belong together
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from elm_interp.activations.index import (
    RANDOM_INIT,
    Entry,
    Index,
    Key,
    as_said,
    for_examples,
    other_examples,
    same_weights,
    write_table,
)
from elm_interp.activations.writer import fresh_folder


@dataclass
class Plan:
    """What a merged store will hold, and from where; or why it cannot be."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    sources: dict[Key, list[tuple[Path, Entry]]] = field(default_factory=dict)
    """Stores and their entries, whose examples follow each other."""
    problems: list[str] = field(default_factory=list)

    def carry_out(self, root: Path, index: Index, taken: list[Path]) -> list[str]:
        """Copy what is elsewhere into the store at `root` and name it in its index.

        Args:
            root: folder of the store.
            index: of the store, changed in place.
            taken: folders that were made, for whoever has to remove them.

        Returns:
            Tables that nothing names any more.
        """
        for key, sources in self.sources.items():
            shards: list[dict[str, Any]] = []
            first = 0
            for folder, entry in sources:
                here = folder == root
                shards += entry.shards if here else _copied(folder, entry, root, first, taken)
                first += entry.n
            index.entries[key] = joined([entry for _, entry in sources], shards, self.tables[key[0]])
        before = dict(index.tables)
        for dataset, examples in self.tables.items():
            n = len(pd.read_parquet(root / before[dataset])) if dataset in before else -1
            if n != len(examples):
                index.tables[dataset] = write_table(root, dataset, examples)
        return [table for dataset, table in before.items() if index.tables[dataset] != table]


def plan(parts: Sequence[tuple[Path, Index]], append: bool) -> Plan:
    """How stores become one: side by side, or with `append` one below the other where they have a dataset in common."""
    made = Plan()
    for folder, index in parts:
        for dataset, table in index.tables.items():
            examples = pd.read_parquet(folder / table)
            held = {key for key in made.sources if key[0] == dataset}
            entries = index.of(dataset)
            if dataset not in made.tables:
                made.tables[dataset] = examples
                made.sources |= {key: [(folder, entry)] for key, entry in entries.items()}
            elif append:
                wrong = not_further(dataset, made.tables[dataset], examples) + _other_states(
                    dataset, held, set(entries)
                )
                made.problems += [f"{folder}: {problem}" for problem in wrong]
                if not wrong:
                    made.tables[dataset] = pd.concat([made.tables[dataset], examples], ignore_index=True)
                    for key, entry in entries.items():
                        made.sources[key].append((folder, entry))
            else:
                other = other_examples(dataset, made.tables[dataset], examples)
                made.problems += [f"{folder}: {other}"] if other else []
                for key, entry in entries.items():
                    kept = made.sources.setdefault(key, [(folder, entry)])[0]
                    if kept[1] is not entry and (not entry.fingerprint or kept[1].fingerprint != entry.fingerprint):
                        made.problems.append(f"{folder}: {_named(entry)} is in {kept[0]} too, made from something else")
    made.problems += _clashes([found for sources in made.sources.values() for found in sources])
    return made


def not_further(dataset: str, known: pd.DataFrame, more: pd.DataFrame) -> list[str]:
    """Why examples cannot follow those that a dataset has; empty where they can."""
    if not len(more):
        return ["no example was given"]
    if list(known) != list(more):
        return [f"dataset {dataset!r} has examples with columns {list(known)}, not {list(more)}"]
    again = pd.concat([as_said(known), as_said(more)], ignore_index=True).duplicated()[len(known) :]
    if not again.any():
        return []
    row = int(again.to_numpy().argmax())
    return [f"{int(again.sum())} examples are in dataset {dataset!r} already, such as {more.iloc[row].to_dict()}"]


def joined(entries: Sequence[Entry], shards: Iterable[dict[str, Any]], examples: pd.DataFrame) -> Entry:
    """One entry of all the examples, from entries of parts of them."""
    whole = entries[0]
    if whole.n == len(examples):
        return replace(whole, shards=tuple(shards))
    return replace(whole, n=len(examples), shards=tuple(shards), fingerprint=for_examples(whole.fingerprint, examples))


def _other_states(dataset: str, held: set[Key], found: set[Key]) -> list[str]:
    differ = sorted(f"{checkpoint} ({site})" for _, checkpoint, site in held ^ found)
    return (
        [f"examples of {dataset!r} can be added only at all its checkpoints, not {', '.join(differ)}"] if differ else []
    )


def _clashes(found: Sequence[tuple[Path, Entry]]) -> list[str]:
    """Entries that say different things where one thing is expected."""
    rules: list[tuple[str, Any, Any]] = []
    for _, entry in found:
        where = f"dataset {entry.dataset!r} at site {entry.site!r}"
        rules += [
            ("base models", f"checkpoint {RANDOM_INIT!r}" if entry.checkpoint == RANDOM_INIT else "", entry.model),
            ("adapters", f"checkpoint {entry.checkpoint!r}", entry.adapter),
            ("dtypes", where, entry.dtype),
            ("(layers, d_model)", where, (entry.layers, entry.d_model)),
            ("positions", where, entry.positions),
            ("further settings", where, str(entry.meta)),
            ("weights or settings", _named(entry), same_weights(entry.fingerprint)),
        ]
    said: dict[tuple[str, str], dict[Any, None]] = {}
    for what, where, value in rules:
        if value != "":
            said.setdefault((what, where), {})[value] = None
    return [
        f"{f'{where} has' if where else 'they have'} several {what}: {', '.join(map(str, values))}"
        for (what, where), values in said.items()
        if len(values) > 1
    ]


def _copied(folder: Path, entry: Entry, root: Path, first: int, taken: list[Path]) -> list[dict[str, Any]]:
    target = fresh_folder(root, f"{entry.dataset}/{entry.checkpoint}")
    taken.append(target)
    shards = []
    for number, shard in enumerate(entry.shards):
        path = target / f"shard-{number:05d}.safetensors"
        shutil.copyfile(folder / shard["file"], path)
        place = {"file": path.relative_to(root).as_posix(), "first": first + shard.get("first", 0)}
        shards.append({**shard, **place})
    return shards


def _named(entry: Entry) -> str:
    return f"{entry.dataset!r} at {entry.checkpoint!r} ({entry.site or 'no site'})"
