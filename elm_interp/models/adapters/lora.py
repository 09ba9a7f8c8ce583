"""LoRA configs: which projections of a model an adapter sits on.

config = lora_config(lm, [4, 5, 6], rank=4, alpha=16, modules="attn+mlp")        # or lm.lora([4, 5, 6], …)
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from peft import LoraConfig

from elm_interp.errors import AdapterError, unknown

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM

_MLP_IN = ("gate_proj", "up_proj", "gate_up_proj", "dense_h_to_4h", "c_fc", "fc1")
_MLP_OUT = ("down_proj", "dense_4h_to_h", "c_proj", "fc2")
PROJECTIONS = {
    "attn": ("q_proj", "k_proj", "v_proj", "o_proj", "query_key_value", "dense", "c_attn", "qkv_proj", "out_proj"),
    "mlp": _MLP_IN + _MLP_OUT,
    "mlp-out": _MLP_OUT,
}
"""Names of the linear layers of attention, of the MLP, and of the MLP's last one, over the model families."""


class WholeWeights(LoraConfig):
    """A LoRA that trains whole weights: its square matrix stays the identity, the other one starts at zero.

    The update is then the trained matrix itself, with the gradient of the weight, so AdamW without decay changes the
    model exactly as if the weight were trained. On disk it is an ordinary LoRA of full rank.
    """


def lora_config(
    lm: "HookedLM",
    layers: Iterable[int],
    *,
    rank: int | None,
    alpha: float = 1.0,
    modules: str = "attn+mlp",
    dropout: float = 0.0,
) -> LoraConfig:
    """The config of a LoRA on the named parts of the given layers, for `adapters.attach`.

    The parts are found by the names of the model's projections.

    Args:
        lm: the model.
        layers: block indices.
        rank: rank r of each update; None trains whole weights (see `WholeWeights`).
        alpha: the update is scaled by alpha / rank; whole weights have no scale.
        modules: "attn", "mlp", "mlp-out" (the MLP's last projection), or several joined by "+".
        dropout: on the adapter's input, in training.

    Raises:
        UnknownNameError: an unknown part in `modules`.
        AdapterError: the blocks have none of the known projections.
    """
    for part in modules.split("+"):
        if part not in PROJECTIONS:
            raise unknown("part of a block", part, PROJECTIONS)
    wanted = {name for part in modules.split("+") for name in PROJECTIONS[part]}
    present = {path: path.rpartition(".")[2] for path, _ in lm.blocks[0].named_modules() if path}
    # in GPT-2 the last projections of attention and MLP have one name; only the path tells them apart
    alone = modules == "mlp-out"
    paths = sorted(path for path, name in present.items() if name in wanted and not (alone and "att" in path))
    if not paths:
        raise AdapterError(f"found none of {sorted(wanted)} in a block, which has {sorted(set(present.values()))}.")
    where: dict[str, Any] = {
        "layers_to_transform": sorted(layers),
        "layers_pattern": lm.layout.blocks.rpartition(".")[2],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    if rank is None:
        ranks = {path: min(lm.blocks[0].get_submodule(path).weight.shape) for path in paths}  # type: ignore[arg-type]
        return WholeWeights(**unscaled(ranks), target_modules=paths, **where)
    where["target_modules"] = paths if alone else sorted({present[path] for path in paths})
    # peft only divides alpha, which need not be an int, by the rank
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, **where)  # type: ignore[arg-type]


def unscaled(ranks: dict[str, int]) -> dict[str, Any]:
    """Settings of a LoRA whose modules have these ranks and whose updates are B A itself."""
    largest = max(ranks.values())
    return {"r": largest, "lora_alpha": largest, "rank_pattern": ranks, "alpha_pattern": dict(ranks)}
