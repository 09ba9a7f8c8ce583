"""Tables of numbers as plain text, for the command line."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elm_interp.registry import ORGANISMS


def score_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The score card of base, erased model and gold, one metric a line."""
    sides = ["base", "erased"] + (["gold"] if any("gold" in one for one in found.values()) else [])
    rows = [["metric", *sides, "n"]]
    for name, one in found.items():
        n = next(one[side] for side in ("erased", "base", "gold") if side in one)["n"]
        rows.append([name, *(cell(one.get(side)) for side in sides), str(n)])
    return _aligned(rows)


def row_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Tidy rows of one model: each with its position, if it has one, its interval and n."""
    named = [(f"{r['metric']}, {r['position']}" if isinstance(r["position"], str) else r["metric"], r) for r in rows]
    return _aligned([[name, cell(row), str(row["n"])] for name, row in named])


def anchor_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What each metric shows on each kind of organism, one metric a line."""
    kinds = list(ORGANISMS)
    lines = [f"{'metric':42}{''.join(f'{kind:>18}' for kind in kinds)}{'AUC gold':>10}{'AUC hiding':>12}"]
    for name, one in found.items():
        cells = "".join(f"{_spread(one[kind]):>18}" for kind in kinds)
        ends = f"{number(one['auc_gold']):>10}{number(one['auc_hiding']):>12}"
        lines.append(f"{name:42}{cells}{ends}{'  constant: shows nothing' if one['constant'] else ''}")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three digits; "-" for none."""
    return "-" if value is None else f"{value:.3g}"


def cell(found: Mapping[str, Any] | None) -> str:
    """A value with its interval, if it has one; "" for none."""
    if found is None:
        return ""
    low, high = found["ci_low"], found["ci_high"]
    # NaN is not equal to itself
    interval = f" [{low:.3g}, {high:.3g}]" if low is not None and low == low else ""
    return f"{found['value']:.3g}{interval}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows under each other, as wide as the longest cell of each column; the first column begins at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _spread(one: Mapping[str, Any]) -> str:
    return number(one["mean"]) + (f" ± {one['sd']:.2g}" if one["sd"] is not None else "")
