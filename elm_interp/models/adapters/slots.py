"""Adapters: peft files in and out, switched on, off and swapped on one loaded base."""

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn

from elm_interp.errors import AdapterError, unknown
from elm_interp.models.adapters.files import WEIGHTS, read_adapter

PROJECTIONS = {
    "attn": ("q_proj", "k_proj", "v_proj", "o_proj", "query_key_value", "dense", "c_attn", "qkv_proj", "out_proj"),
    "mlp": (
        "gate_proj",
        "up_proj",
        "down_proj",
        "dense_h_to_4h",
        "dense_4h_to_h",
        "c_fc",
        "c_proj",
        "fc1",
        "fc2",
        "gate_up_proj",
    ),
    "mlp-out": ("down_proj", "dense_4h_to_h", "c_proj", "fc2"),
}
"""Names of the linear layers inside attention and MLP, and of the MLP's last one, over the families of transformers."""


class WholeWeights(LoraConfig):
    """A LoRA that is the whole weight: of its two matrices the square one stays the identity, the other starts at zero.

    The update then is the trained matrix itself, with the gradient that the weight would have, so that AdamW without decay
    moves the model exactly as if the weight were trained. On disk it is an ordinary LoRA of full rank.
    """


class AdapterSlots:
    """The adapters on one base model: which are loaded, which one is on.

    A slot is kept for each adapter shape (rank, layers, modules), so that going through the checkpoints of a run copies
    a few tensors instead of building modules again. `release` takes everything off and leaves the bare base.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._peft: PeftModel | None = None
        self._slots: dict[str, str] = {}  # adapter shape, as canonical JSON -> peft's name for it
        self._current: str | None = None  # the slot that is on
        self._in_slot: dict[str, str] = {}  # slot -> what its weights are
        self._made = 0  # slots ever made, for their names
        self._fixed: dict[str, list[nn.Parameter]] = {}  # slot -> the identities of `WholeWeights`
        self._entered: list[str | None] = []  # the slot that each enclosing `use` goes back to, outermost first
        self._kept: list[dict[str, tuple[dict[str, torch.Tensor], str]]] = []  # what each has to put back into slots
        self._learning: str | None = None  # the slot in training, the only one whose dropout acts
        self._grad_flags: dict[nn.Parameter, bool] = {}  # as they were before peft froze the base

    @property
    def current(self) -> str | None:
        """What is on: the path that was loaded, "new" for one made by `attach`, None for the bare base."""
        return self._in_slot[self._current] if self._current else None

    def attach(self, config: LoraConfig) -> list[nn.Parameter]:
        """Put on a fresh, trainable adapter and return its parameters (B zero), in the dtype of the base.

        In peft's own float32 a bfloat16 base is slowed by a third: every input and output is cast. A trainer keeps float32
        masters instead.
        """
        slot = self._make_slot(config)
        self._in_slot[slot] = "new"
        self._learning = slot
        if isinstance(config, WholeWeights):
            self._fixed[slot] = self._set_identities(slot)
        self._switch(slot)
        return [p for p in self._model.parameters() if p.requires_grad]

    def load(self, folder: str | Path, *, trainable: bool = False) -> None:
        """Put on the adapter saved in a peft folder (or hub id).

        Raises:
            AdapterError: no peft files; not LoRA; keys that do not all find their place; all B matrices zero.
        """
        config, weights = read_adapter(folder)
        key = _shape_key(config)
        fresh = key not in self._slots
        try:
            slot = self._slots[key] if not fresh else self._make_slot(config)
        except ValueError as error:
            raise AdapterError(f"the adapter in {folder} does not fit this model: {error}") from error
        peft = cast(PeftModel, self._peft)
        problem = _mismatch(peft, weights, slot)
        if problem:
            if fresh:
                self._drop(slot)
            raise AdapterError(f"the adapter in {folder} does not fit this model: {problem}")
        if slot in self._entered:
            # an enclosing `use` goes back to this slot: keep what is in it
            state = {key: tensor.clone() for key, tensor in get_peft_model_state_dict(peft, adapter_name=slot).items()}
            self._kept[-1].setdefault(slot, (state, self._in_slot[slot]))
        set_peft_model_state_dict(peft, weights, adapter_name=slot)
        self._in_slot[slot] = str(folder)
        if trainable:
            self._learning = slot
        self._switch(slot, trainable=trainable)

    def off(self) -> None:
        """Run the bare base; loaded adapters stay in their slots."""
        self._switch(None)

    @contextmanager
    def use(self, which: str | Path | None) -> Iterator[None]:
        """Inside the context: the adapter in folder `which`, or the bare base for None. Restored after, also on error."""
        before = self._current
        self._entered.append(before)
        self._kept.append({})
        grads = {p: p.requires_grad for p in self._model.parameters()}
        try:
            if which is None:
                self.off()
            elif self.current != str(which):
                self.load(which)
            yield
        finally:
            self._entered.pop()
            for slot, (state, label) in self._kept.pop().items():
                set_peft_model_state_dict(self._peft, state, adapter_name=slot)
                self._in_slot[slot] = label
            self._switch(before)
            for parameter, flag in grads.items():
                parameter.requires_grad_(flag)

    def merged(self) -> nn.Module:
        """A copy of the model on memory of its own, with the adapter that is on folded into its weights."""
        if self._peft is None:
            return copy.deepcopy(self._model)
        whole = copy.deepcopy(self._peft)
        merged = whole.merge_and_unload(adapter_names=[self._current]) if self._current else whole.unload()
        return cast(nn.Module, merged).requires_grad_(False)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Inside the context, the adapter in training acts as it will when it is loaded: without dropout."""
        learning, self._learning = self._learning, None
        self._set_dropout()
        try:
            yield
        finally:
            self._learning = learning
            self._set_dropout()

    @contextmanager
    def scratch(self, config: LoraConfig) -> Iterator[list[nn.Parameter]]:
        """Inside the context, a fresh trainable adapter in float32 is on; after it, it is gone and what was on is on again."""
        known, learning = dict(self._slots), self._learning
        with self.use(None):
            parameters = self.attach(config)
            slot = cast(str, self._current)
            for parameter in parameters:
                parameter.data = parameter.data.float()
            try:
                yield parameters
            finally:
                self._learning = learning
                self.off()
                self._slots = known
                self._drop(slot)

    def state(self) -> dict[str, torch.Tensor]:
        """The weights of the adapter that is on, under peft's file keys."""
        if self._current is None:
            raise AdapterError("no adapter is on; attach or load one first.")
        return get_peft_model_state_dict(self._peft, adapter_name=self._current)

    def save(self, folder: str | Path) -> None:
        """Write the adapter that is on as peft files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.state().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        config = cast(PeftModel, self._peft).peft_config[cast(str, self._current)]
        inference_mode, config.inference_mode = config.inference_mode, True
        try:
            config.save_pretrained(str(folder))
        finally:
            config.inference_mode = inference_mode

    def release(self) -> None:
        """Take every adapter off and give the base its own modules back."""
        if self._peft is not None:
            self._peft.unload()
        self._peft, self._current, self._learning = None, None, None
        self._slots.clear()
        self._in_slot.clear()
        self._fixed.clear()
        for parameter, flag in self._grad_flags.items():
            parameter.requires_grad_(flag)

    def _make_slot(self, config: PeftConfig) -> str:
        slot = f"slot{self._made}"
        self._made += 1
        if self._peft is None:
            self._grad_flags = {p: p.requires_grad for p in self._model.parameters()}
            with warnings.catch_warnings():
                # peft asks transformers for an attribute under its old name
                warnings.simplefilter("ignore", FutureWarning)
                self._peft = PeftModel(self._model, config, adapter_name=slot, autocast_adapter_dtype=False)
        else:
            self._peft.add_adapter(slot, config, autocast_adapter_dtype=False)
        self._slots[_shape_key(config)] = slot
        return slot

    @torch.no_grad()
    def _set_identities(self, slot: str) -> list[nn.Parameter]:
        fixed = []
        for module in self._model.modules():
            if isinstance(module, LoraLayer) and slot in module.lora_A:
                a, b = (cast(nn.Linear, part[slot]).weight for part in (module.lora_A, module.lora_B))
                square, other = (b, a) if len(b) == b.shape[1] else (a, b)
                square.copy_(torch.eye(len(square)))
                other.zero_()
                fixed.append(cast(nn.Parameter, square))
        return fixed

    def _drop(self, slot: str) -> None:
        self._slots = {key: name for key, name in self._slots.items() if name != slot}
        if not self._slots:
            self.release()
        elif self._peft is not None:
            with warnings.catch_warnings():
                # peft says that it goes on with another adapter; the caller switches
                warnings.simplefilter("ignore", UserWarning)
                self._peft.delete_adapter(slot)

    def _switch(self, slot: str | None, *, trainable: bool = True) -> None:
        self._current = slot
        for module in self._model.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(slot is not None)
                if slot is not None:
                    module.set_adapter(slot)
        for parameter in self._fixed.get(slot or "", ()):
            parameter.requires_grad_(False)
        if slot is not None and not trainable:
            for parameter in self._model.parameters():
                parameter.requires_grad_(False)
        self._set_dropout(trainable)

    def _set_dropout(self, trainable: bool = True) -> None:
        # peft makes its modules in training mode, so that a loaded adapter would drop at random
        for module in self._model.modules():
            if isinstance(module, BaseTunerLayer):
                for slot, dropout in cast(nn.ModuleDict, module.lora_dropout).items():
                    dropout.train(trainable and slot == self._learning)


def lora_config(
    model: nn.Module,
    blocks: str,
    layers: list[int],
    *,
    rank: int | None,
    alpha: float = 1.0,
    modules: str = "attn+mlp",
    dropout: float = 0.0,
) -> LoraConfig:
    """A LoRA on the named parts of the given layers, found by the projections that the model has.

    Args:
        model: the causal language model.
        blocks: path of its block list, from `find_layout`.
        layers: block indices.
        rank: rank r of each update; None trains the weights whole (see `WholeWeights`).
        alpha: the update is scaled by alpha / rank; whole weights have no scale.
        modules: "attn", "mlp", "mlp-out" (the MLP's last projection), or several, joined by "+".
        dropout: on the adapter's input, while training.

    Raises:
        UnknownNameError: another word for `modules`.
        AdapterError: none of the known projections is in the blocks.
    """
    for part in modules.split("+"):
        if part not in PROJECTIONS:
            raise unknown("part of a block", part, PROJECTIONS)
    wanted = {name for part in modules.split("+") for name in PROJECTIONS[part]}
    first = cast(nn.ModuleList, model.get_submodule(blocks))[0]
    present = {path: path.rpartition(".")[2] for path, _ in first.named_modules() if path}
    # GPT-2 calls the last projection of attention as it calls the MLP's: only the path tells them apart
    paths = sorted(
        path for path, name in present.items() if name in wanted and not (modules == "mlp-out" and "att" in path)
    )
    if not paths:
        raise AdapterError(f"found none of {sorted(wanted)} in a block, which has {sorted(set(present.values()))}.")
    where: dict[str, Any] = {
        "layers_to_transform": sorted(layers),
        "layers_pattern": blocks.rpartition(".")[2],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    if rank is None:
        ranks = {path: min(first.get_submodule(path).weight.shape) for path in paths}  # type: ignore[arg-type, type-var]
        return WholeWeights(
            r=max(ranks.values()),
            lora_alpha=max(ranks.values()),
            target_modules=paths,
            rank_pattern=ranks,
            alpha_pattern=dict(ranks),
            **where,
        )
    targets = paths if modules == "mlp-out" else sorted({present[path] for path in paths})
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        lora_dropout=dropout,
        target_modules=targets,
        **where,
    )


def _shape_key(config: PeftConfig) -> str:
    fields = config.to_dict()
    irrelevant = ("inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "task_type", "peft_version")
    kept = {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items() if k not in irrelevant}
    return json.dumps(kept, sort_keys=True, default=str)


def _mismatch(peft: PeftModel, weights: dict[str, torch.Tensor], slot: str) -> str:
    expected = get_peft_model_state_dict(peft, adapter_name=slot)
    lost, missing = sorted(weights.keys() - expected.keys()), sorted(expected.keys() - weights.keys())
    wrong = sorted(key for key in weights.keys() & expected.keys() if weights[key].shape != expected[key].shape)
    parts = []
    if lost:
        parts.append(f"{len(lost)} keys find no place, such as {lost[0]}")
    if missing:
        parts.append(f"{len(missing)} expected keys are missing, such as {missing[0]}")
    if wrong:
        parts.append(
            f"{len(wrong)} have another shape, such as {wrong[0]}: {tuple(weights[wrong[0]].shape)} for {tuple(expected[wrong[0]].shape)}"
        )
    return "; ".join(parts)
