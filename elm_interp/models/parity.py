"""Parity: every causal language model of transformers, built tiny, against plain transformers.

For each family a tiny random model is loaded, and what elm_interp computes is held against the model called by itself,
on one row without padding or cache. Differences are relative to the largest value that they are differences of.

    python -m elm_interp.models.parity                                # all families, a few minutes
    python -m elm_interp.models.parity --only llama gemma3_text
    python -m elm_interp.models.parity --markdown docs/models.md      # the page of the documentation
"""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import peft
import torch
import transformers
import tyro
from peft import LoraConfig
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from elm_interp.errors import LayoutError, UnknownSiteError
from elm_interp.models.backends.contract import quiet
from elm_interp.models.hooked import HookedLM
from elm_interp.models.shared_prefix import branch
from elm_interp.models.sites import site_names
from elm_interp.models.tiny_families import VOCABULARY, families, tiny_model, tiny_tokenizer

LENGTHS = (5, 40, 9, 23, 17)
NEW_TOKENS = 12
TOLERANCE = 1e-4
_STATUSES = ("ok", "refused", "failed", "unbuilt")
_WORDS = {"unbuilt": "not built"}
CHECKS = {
    "batch": "logits of rows of 5 to 40 tokens in one batch, padded on either side",
    "shared prefix": "log-probabilities of answers after prompts that share a prefix",
    "generation": f"{NEW_TOKENS} greedy tokens: how many differ",
    "sites add up": "resid_pre + attn_out + mlp_out = resid_post, also after attn_out was set to zero",
    "adapter off": "logits of the base after a LoRA on all linear layers was on and off; exactly 0",
}


@dataclass
class Row:
    """What was found in one family."""

    family: str
    status: str = "ok"
    """"ok", "refused", "failed", or "unbuilt" if no tiny config was found."""
    reason: str = ""
    differences: dict[str, float] = field(default_factory=dict)
    """Largest relative difference of each of `CHECKS`."""
    absent: dict[str, str] = field(default_factory=dict)
    """Sites that the family lacks, with the reason."""


def table(only: Iterable[str] = ()) -> Iterator[Row]:
    """One row for each family, as soon as it is known.

    Args:
        only: names of families; none means all that transformers has.
    """
    for family in tqdm(list(only) or families(), desc="families"):
        yield examine(family)


def examine(family: str) -> Row:
    """Load a tiny model of a family and compare it with itself in plain transformers."""
    row = Row(family)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = tiny_model(family)
    except Exception as error:  # whatever a family's own code raises
        return Row(family, "unbuilt", _first_line(error))
    try:
        lm = HookedLM(model, tiny_tokenizer(), name=family)
    except LayoutError as error:
        return Row(family, "refused", str(error))
    except Exception as error:
        return Row(family, "failed", f"cannot be loaded: {_first_line(error)}")
    problems = []
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row.absent, broken = _absent(lm)
        problems += broken
        for name, check in _CHECKS.items():
            try:
                row.differences[name] = check(lm)
            except UnknownSiteError:
                continue
            except Exception as error:
                problems.append(f"{name}: {_first_line(error)}")
    problems += [f"{name} differs by {gap:.1e}" for name, gap in row.differences.items() if not gap <= _allowed(name)]
    row.reason = "; ".join(problems)
    row.status = "failed" if problems else "ok"
    return row


def _allowed(name: str) -> float:
    return 0.0 if name in ("adapter off", "generation") else TOLERANCE


def _first_line(error: Exception) -> str:
    first, _, rest = str(error).strip().partition("\n")
    if first.endswith(":"):  # a heading
        first += f" {rest.strip().partition(chr(10))[0]}"
    return f"{type(error).__name__}: {first}"[:300]


def _rows(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def plain_logits(model: PreTrainedModel, row: Sequence[int]) -> Tensor:
    """Logits of one row, by the model alone."""
    logits: Tensor = model(input_ids=torch.tensor([list(row)]), use_cache=False).logits
    return logits[0].float()


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def batch_gap(lm: HookedLM) -> float:
    """Largest difference of logits in a batch from those of each row alone."""
    rows = _rows(LENGTHS)
    plain = [plain_logits(lm.model, row) for row in rows]
    gaps = []
    for group in (rows, *([row] for row in rows)):
        for side in ("right", "left"):
            logits = lm.logits(lm.pad(group, side=side), positions="all")
            gaps += [_gap(logits[group.index(row), : len(row)], plain[rows.index(row)]) for row in group]
    return max(gaps)


@torch.no_grad()
def prefix_gap(lm: HookedLM) -> float:
    """Largest difference of log-probabilities of answers after prompts that share a prefix."""
    prefix, *prompts = _rows((6, 5, 20, 11), seed=1)
    options = [_rows((3, 12), seed=i) for i in range(len(prompts))]
    hidden, ids = branch(lm, prompts, options, prefix=prefix)
    ours = lm.unembed(hidden).float().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    theirs = []
    for prompt, group in zip(prompts, options, strict=True):
        for option in group:
            before = len(prefix) + len(prompt)
            logits = plain_logits(lm.model, [*prefix, *prompt, *option])[before - 1 : -1]
            theirs.append(logits.log_softmax(-1).gather(1, torch.tensor(option)[:, None])[:, 0])
    return _gap(ours, torch.cat(theirs))


def generation_gap(lm: HookedLM) -> float:
    """Number of greedy tokens that differ from those of the model alone."""
    rows = _rows((5, 20, 11), seed=2)
    ours = lm.generate([str(lm.tokenizer.decode(row)) for row in rows], new_tokens=NEW_TOKENS, greedy=True)
    wrong = 0
    for row, text in zip(rows, ours, strict=True):
        written: list[int] = []
        while len(written) < NEW_TOKENS:
            token = int(plain_logits(lm.model, [*row, *written])[-1].argmax())
            if token == lm.tokenizer.eos_token_id:
                break
            written.append(token)
        theirs = str(lm.tokenizer.decode(written, skip_special_tokens=True)).split()
        wrong += sum(a != b for a, b in zip(text.split(), theirs, strict=False)) + abs(len(text.split()) - len(theirs))
    return float(wrong)


def sum_gap(lm: HookedLM) -> float:
    """Largest difference of the streams after the blocks from the sums of what is added to the streams before them."""
    batch = lm.pad(_rows((5, 12)), side="left")

    def gap() -> float:
        cache = lm.run_with_cache(batch, sites=["resid_pre", "attn_out", "mlp_out", "resid_post"], positions="all")
        return _gap(cache["resid_pre"] + cache["attn_out"] + cache["mlp_out"], cache["resid_post"])

    whole = gap()
    with lm.hooks({"attn_out": torch.zeros_like}):
        return max(whole, gap())


def adapter_gap(lm: HookedLM) -> float:
    """Largest difference of the base's logits before and after an adapter; not finite if the adapter does nothing."""
    batch = lm.pad(_rows((7, 12)))
    before = lm.logits(batch)
    linear = [
        n for n, m in lm.model.named_modules() if f"{lm.layout.blocks}." in n and "mamba" not in n and _is_linear(m)
    ]
    with quiet():
        weights = lm.adapters.attach(LoraConfig(r=2, target_modules=linear, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    for weight in weights:
        weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    changed = _gap(lm.logits(batch), before)
    with lm.adapter(None):
        inside = float((lm.logits(batch) - before).abs().max())
    lm.adapters.off()
    after = float((lm.logits(batch) - before).abs().max())
    return max(inside, after) if changed > TOLERANCE else float("inf")


def _is_linear(module: nn.Module) -> bool:
    # some routers and grouped projections are linear layers with another output, which peft does not know
    return isinstance(module, nn.Linear | Conv1D) and not re.search("Router|Grouped", type(module).__name__)


_CHECKS: dict[str, Callable[[HookedLM], float]] = dict(
    zip(CHECKS, (batch_gap, prefix_gap, generation_gap, sum_gap, adapter_gap), strict=True)
)


def _absent(lm: HookedLM) -> tuple[dict[str, str], list[str]]:
    """Sites that the model lacks, and why; and those that cannot be read although it should have them."""
    batch, absent, broken = lm.pad(_rows((4,))), {}, []
    for name in site_names():
        try:
            lm.run_with_cache(batch, sites=name)
        except UnknownSiteError as error:
            absent[name] = str(error)
        except Exception as error:
            broken.append(f"{name}: {_first_line(error)}")
    return absent, broken


def as_markdown(rows: Sequence[Row]) -> str:
    """The page of the documentation."""
    by_status = {status: [row for row in rows if row.status == status] for status in _STATUSES}
    counts = ", ".join(f"{len(found)} {_WORDS.get(status, status)}" for status, found in by_status.items() if found)
    others = sum("(" in row.family for row in rows)
    also = f" and {others} models of them that are built otherwise" if others else ""
    made_with = f"transformers {transformers.__version__}, peft {peft.__version__} and torch {torch.__version__}"
    lines = [*_INTRO, f"{len(rows) - others} families{also}, with {made_with}: {counts}.", ""]
    lines += [f"* {name}: {meaning}" for name, meaning in CHECKS.items()]
    lines += ["", f"| family | {' | '.join(CHECKS)} | sites that it lacks |", f"|---|{'---|' * len(CHECKS)}---|"]
    for row in (*by_status["ok"], *by_status["failed"]):
        cells = [f"{row.differences[name]:.0e}" if row.differences.get(name) else "0" for name in CHECKS]
        cells = [cell if name in row.differences else "–" for name, cell in zip(CHECKS, cells, strict=True)]
        lines.append(f"| {row.family} | {' | '.join(cells)} | {', '.join(row.absent) or 'none'} |")
    for status, title in (("refused", "Refused"), ("failed", "Failing"), ("unbuilt", "Not built tiny")):
        if by_status[status]:
            lines += ["", f"## {title}", "", "| family | reason |", "|---|---|"]
            reasons = [(row.family, row.reason.partition("; pass layout=")[0]) for row in by_status[status]]
            lines += [f"| {family} | {reason.replace('|', '/')} |" for family, reason in reasons]
    return "\n".join(lines) + "\n"


_INTRO = [
    "# Model families",
    "",
    "Every causal language model of transformers, built tiny with random weights, against plain transformers: one row "
    "without padding or cache. A name with a model in parentheses is a family whose config can change how it is built. "
    "Windows are 8 tokens long here, rows 5 to 40. Numbers are differences relative to the "
    'largest value; "–" stands for a check that needs a site that the family lacks.',
    "",
    "Made by `python -m elm_interp.models.parity --markdown docs/models.md`.",
    "",
]


def main(
    only: tuple[str, ...] = (),
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    markdown: Path | None = None,
) -> None:
    """Compare families with plain transformers and print what differs.

    Args:
        only: names of families; none means all.
        json_file: where to write every row.
        markdown: where to write the page of the documentation.
    """
    rows = []
    for row in table(only):
        rows.append(row)
        tqdm.write(f"{row.family:28} {row.status:8} {row.reason}")
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    if markdown is not None:
        markdown.write_text(as_markdown(rows), encoding="utf-8")
    tqdm.write(", ".join(f"{n} {s}" for s in _STATUSES if (n := sum(r.status == s for r in rows))))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
