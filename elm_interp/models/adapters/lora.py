"""LoRA configs: which weight matrices of a model an adapter sits on.

config = lora_config(lm, [4, 5, 6], rank=4, alpha=16, modules="attn+mlp")        # or lm.lora([4, 5, 6], …)
adapted_sizes(lm, config)                                                        # parameters of each matrix's adapter

The matrices are found by structure, so a part is trained whole whatever its layers are called: every linear layer of
the attention, every other one of the block, and the matrices of experts. Norms, biases, convolutions and routers of a
class of their own are no projections and stay as they are.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from elm_interp.errors import AdapterError, unknown
from elm_interp.models.adapters.whole import bare_name

if TYPE_CHECKING:
    from elm_interp.models.hooked import HookedLM

PARTS = ("attn", "mlp", "mlp-out")
"""Parts of a block: attention, all else, and of all else what writes to the residual stream."""
_OUTPUTS = ("down_proj", "dense_4h_to_h", "c_proj", "fc2", "fc_out", "w2", "wo", "output_linear", "linear_out")
_GROUPED = "GroupedLinear"
_ROUTERS = re.compile("Router|Gate$")


class WholeWeights(LoraConfig):
    """A LoRA that trains whole weights: its square matrix stays the identity, the other one starts at zero.

    The update is then the trained matrix itself, with the gradient of the weight, so AdamW without decay changes the
    model exactly as if the weight were trained. On disk it is an ordinary LoRA of full rank.
    """


class Matrix(NamedTuple):
    """A weight matrix of a block, or one of each expert."""

    name: str
    """In the model without adapters: of its linear layer, or of the parameter itself."""
    weight: Tensor
    is_layer: bool
    """Whether it belongs to a linear layer; else it is a parameter of its own."""


def lora_config(
    lm: "HookedLM",
    layers: Iterable[int],
    *,
    rank: int | None,
    alpha: float = 1.0,
    modules: str = "attn+mlp",
    dropout: float = 0.0,
) -> LoraConfig:
    """The config of a LoRA on all of the named parts of the given layers, for `adapters.attach`.

    Args:
        lm: the model.
        layers: block indices.
        rank: rank r of each update; None trains whole weights (see `WholeWeights`).
        alpha: the update is scaled by alpha / rank; whole weights have no scale.
        modules: "attn", "mlp", "mlp-out" (the MLP's last projection), or several joined by "+".
        dropout: on the adapter's input, in training.

    Raises:
        UnknownNameError: an unknown part in `modules`.
        AdapterError: a block lacks such a part, or a matrix of it cannot be trained; the message names it.
    """
    layers = sorted(layers)
    chosen = _chosen(lm, layers, modules)
    targets = {matrix.name: matrix.weight for matrix in chosen if matrix.is_layer}
    experts = sorted(matrix.name for matrix in chosen if not matrix.is_layer)
    taken = [name for name in targets if _is_taken_for_experts(lm, name)]
    for name in taken:
        del targets[name]
    experts += [f"{name}.weight" for name in sorted(taken)]
    if experts and (rank is None or dropout):
        setting = "rank=None (whole weights)" if rank is None else f"dropout={dropout}"
        raise AdapterError(
            f"{len(experts)} weights of experts or beside them, such as {experts[0]}, would be left out: they take no "
            f"{setting}; expected {'a rank' if rank is None else 'dropout=0'}, or modules without them."
        )
    where: dict[str, Any] = {"bias": "none", "task_type": "CAUSAL_LM"}
    if experts:
        where["target_parameters"] = experts
    form = _form(lm, layers, set(targets), by_path=rank is None or modules == "mlp-out")
    if rank is None:
        return WholeWeights(**unscaled(_ranks(lm, targets, form)), **form, **where)
    # peft only divides alpha, which need not be an int, by the rank
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, **form, **where)  # type: ignore[arg-type]


def unscaled(ranks: dict[str, int]) -> dict[str, Any]:
    """Settings of a LoRA whose modules have these ranks and whose updates are B A itself."""
    largest = max(ranks.values())
    return {"r": largest, "lora_alpha": largest, "rank_pattern": ranks, "alpha_pattern": dict(ranks)}


def adapted_sizes(lm: "HookedLM", config: LoraConfig) -> dict[str, int]:
    """How many parameters a new adapter of this config trains at each matrix of the blocks, by the matrix's name."""
    sizes = {}
    for name, weight, is_layer in (matrix for layer in range(lm.n_layers) for matrix in _matrices(lm, layer)):
        targeted = f"{name}.weight" if is_layer else name
        in_modules = is_layer and bool(check_target_module_exists(config, name))
        if in_modules or targeted in (config.target_parameters or ()):
            *experts, rows, columns = weight.shape
            trained = rows * columns if isinstance(config, WholeWeights) else config.r * (rows + columns)
            sizes[name] = trained * (*experts, 1)[0]
    return sizes


def _chosen(lm: "HookedLM", layers: list[int], modules: str) -> list[Matrix]:
    """The matrices of the named parts, each part found in every layer."""
    chosen: dict[str, Matrix] = {}
    for part in modules.split("+"):
        if part not in PARTS:
            raise unknown("part of a block", part, PARTS)
        for layer in layers:
            there = list(_matrices(lm, layer))
            found = [matrix for matrix in there if _is_in(matrix, part, lm, layer)]
            if part == "mlp-out":
                found = _outputs(found, lm)
            if not found:
                names = sorted({matrix.name.rpartition(".")[2] for matrix in there})
                raise AdapterError(
                    f"found no weight matrix of {part!r} in block {layer}, which has {names}; "
                    "pass layout= if a part was found wrongly."
                )
            chosen |= {matrix.name: matrix for matrix in found}
    return list(chosen.values())


def _matrices(lm: "HookedLM", layer: int) -> Iterator[Matrix]:
    """The weight matrices of a block.

    Raises:
        AdapterError: one that a LoRA cannot sit on.
    """
    block = lm.layout.block(layer)
    for path, module in lm.model.get_submodule(block).named_modules(prefix=block):
        name = bare_name(path)
        inner = getattr(module, "base_layer", None)  # of an adapter's layer around it
        if name is None or isinstance(inner, nn.Module) or _is_no_projection(module):
            continue
        if _GROUPED in type(module).__name__:
            raise AdapterError(
                f"{name} ({type(module).__name__}) would be left out: no LoRA sits on grouped projections."
            )
        if isinstance(module, nn.Linear | Conv1D):
            yield Matrix(name, module.weight, is_layer=True)
            continue
        for attribute, weight in module.named_parameters(recurse=False):
            if weight.ndim < 2 or "bias" in attribute:
                continue
            if weight.ndim > 3 or (weight.ndim == 2 and min(weight.shape) < 2):
                raise AdapterError(
                    f"{name}.{attribute} of shape {tuple(weight.shape)} would be left out: no LoRA sits on it; "
                    "expected linear layers and matrices of experts."
                )
            yield Matrix(f"{name}.{attribute}", weight, is_layer=False)


def _is_taken_for_experts(lm: "HookedLM", name: str) -> bool:
    """Whether peft takes a linear layer's name for that of experts in files of transformers 4, and targets these."""
    leaf = name.rpartition(".")[2]
    config = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, lm.model, None)
    except ValueError:  # it wants the other half of a fused matrix too
        return True
    return leaf not in (config.target_modules or ())


def _is_no_projection(module: nn.Module) -> bool:
    return bool(_ROUTERS.search(type(module).__name__)) or isinstance(module, nn.Embedding | nn.modules.conv._ConvNd)


def _is_in(matrix: Matrix, part: str, lm: "HookedLM", layer: int) -> bool:
    in_attention = matrix.name.startswith(lm.layout.block(layer, lm.layout.attn) + ".")
    return in_attention if part == "attn" else not in_attention


def _outputs(matrices: list[Matrix], lm: "HookedLM") -> list[Matrix]:
    """Of the matrices of an MLP, those that write to the residual stream."""
    names = {*_OUTPUTS, lm.layout.mlp_proj.rpartition(".")[2]} - {""}
    chosen = [m for m in matrices if not names.isdisjoint(m.name.split(".")[-2:])]
    widths = {m.name: (m.weight.shape[-1], m.weight.shape[-2]) for m in matrices}
    # whichever way round a weight is kept, an MLP that widens has one side of the stream's width and one of its own
    left = [
        m.name for m in matrices
        if m not in chosen and m.is_layer and isinstance(lm.model.get_submodule(m.name), nn.Linear)
        and widths[m.name][1] == lm.d_model != widths[m.name][0]
    ]  # fmt: skip
    if left:
        raise AdapterError(f"{', '.join(left[:3])} would be left out of 'mlp-out'; expected one of {sorted(names)}.")
    return chosen


def _form(lm: "HookedLM", layers: list[int], targets: set[str], *, by_path: bool) -> dict[str, Any]:
    """The shortest way to tell peft of exactly these linear layers: by name, by path in the block, or by whole path."""
    pattern = lm.layout.blocks.rpartition(".")[2]
    inside = sorted({re.sub(rf"^{re.escape(lm.layout.blocks)}\.\d+\.", "", name) for name in targets})
    names = sorted({path.rpartition(".")[2] for path in inside})
    in_layers = {"layers_to_transform": layers, "layers_pattern": pattern}
    bare = [name for name in (bare_name(path) for path, _ in lm.model.named_modules()) if name]
    for given in (inside,) if by_path else (names, inside):
        form: dict[str, Any] = {"target_modules": given, **in_layers}
        config = LoraConfig(**form)
        if {name for name in bare if check_target_module_exists(config, name)} == targets:
            return form
    return {"target_modules": sorted(targets)}


def _ranks(lm: "HookedLM", targets: dict[str, Tensor], form: dict[str, Any]) -> dict[str, int]:
    """The full rank of each target, under the shortest names that tell them apart."""
    full = {name: min(weight.shape) for name, weight in targets.items()}
    by_path: dict[str, set[int]] = {}
    for name, rank in full.items():
        by_path.setdefault(re.sub(rf"^{re.escape(lm.layout.blocks)}\.\d+\.", "", name), set()).add(rank)
    if "layers_to_transform" in form and all(len(ranks) == 1 for ranks in by_path.values()):
        return {path: ranks.pop() for path, ranks in by_path.items()}
    return {f"^{re.escape(name)}$": rank for name, rank in full.items()}
