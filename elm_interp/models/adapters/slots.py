"""The adapters on one loaded base: attached, loaded from peft files, switched on and off, swapped, saved."""

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from elm_interp.errors import AdapterError
from elm_interp.models.adapters.files import WEIGHTS, read_adapter
from elm_interp.models.adapters.lora import WholeWeights
from elm_interp.models.changed import changed

State: TypeAlias = dict[str, tuple[dict[str, torch.Tensor], str]]
"""Of slots: their weights, and where these are from."""


class AdapterSlots:
    """The adapters on one base model.

    Adapters of one shape (rank, layers, modules) share a slot, so going through the checkpoints of a run copies a few
    tensors instead of building modules again. `release` takes everything off and leaves the bare base.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._peft: PeftModel | None = None
        self._slots: dict[str, str] = {}  # adapter shape, as canonical JSON -> peft's name of the slot
        self._current: str | None = None  # the slot that is on
        self._in_slot: dict[str, str] = {}  # slot -> where its weights are from
        self._made = 0  # slots ever made
        self._fixed: dict[str, list[nn.Parameter]] = {}  # slot -> the identities of `WholeWeights`
        self._open: list[tuple[str | None, State]] = []  # what each open `use` restores, outermost first
        self._learning: str | None = None  # the slot in training, the only one with active dropout
        self._grad_flags: dict[nn.Parameter, bool] = {}  # from before peft froze the base

    @property
    def current(self) -> str | None:
        """The adapter that is on: the path it was loaded from, "new" if `attach` made it, None for the bare base."""
        return self._in_slot[self._current] if self._current else None

    def attach(self, config: LoraConfig) -> list[nn.Parameter]:
        """Put on a new trainable adapter (B zero) in the dtype of the base, and return its parameters.

        peft's own default, float32, casts every input and output, which makes a bfloat16 base a third slower. A trainer
        keeps float32 master weights instead.
        """
        self._learning = slot = self._make_slot(config)
        self._in_slot[slot] = "new"
        if isinstance(config, WholeWeights):
            self._fixed[slot] = self._set_identities(slot)
        self._switch(slot)
        return [p for p in self._model.parameters() if p.requires_grad]

    def load(self, folder: str | Path, *, trainable: bool = False) -> None:
        """Put on the adapter saved in a peft folder (or hub id).

        Raises:
            AdapterError: no peft files, not LoRA, keys that do not match the model, or all B matrices zero.
        """
        config, weights = read_adapter(folder)
        known = self._slots.get(_shape_key(config))
        try:
            slot = known or self._make_slot(config)
        except ValueError as error:
            raise AdapterError(f"the adapter in {folder} does not fit this model: {error}") from error
        state = get_peft_model_state_dict(self._peft, adapter_name=slot)
        if problem := _mismatch(weights, state):
            if not known:
                self._drop(slot)
            raise AdapterError(f"the adapter in {folder} does not fit this model: {problem}")
        if any(slot == before for before, _ in self._open):
            # an open `use` restores this slot: keep its weights
            kept = {key: tensor.clone() for key, tensor in state.items()}
            self._open[-1][1].setdefault(slot, (kept, self._in_slot[slot]))
        set_peft_model_state_dict(self._peft, weights, adapter_name=slot)
        self._in_slot[slot] = str(folder)
        if trainable:
            self._learning = slot
        self._switch(slot, trainable=trainable)

    def off(self) -> None:
        """Run the bare base; loaded adapters stay in their slots."""
        self._switch(None)

    @contextmanager
    def use(self, which: str | Path | None) -> Iterator[None]:
        """Inside the context, run the adapter of a folder, or the bare base for None; restored after, also on error."""
        self._open.append((self._current, {}))
        grads = {p: p.requires_grad for p in self._model.parameters()}
        try:
            if which is None:
                self.off()
            elif self.current != str(which):
                self.load(which)
            yield
        finally:
            before, kept = self._open.pop()
            for slot, (state, label) in kept.items():
                set_peft_model_state_dict(self._peft, state, adapter_name=slot)
                self._in_slot[slot] = label
            self._switch(before)
            for parameter, flag in grads.items():
                parameter.requires_grad_(flag)

    def merged(self) -> nn.Module:
        """A copy of the model in memory of its own, with the adapter that is on merged into its weights."""
        if self._peft is None:
            return copy.deepcopy(self._model)
        whole = copy.deepcopy(self._peft)
        merged = whole.merge_and_unload(adapter_names=[self._current]) if self._current else whole.unload()
        return cast(nn.Module, merged).requires_grad_(False)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Inside the context, the adapter in training acts without dropout, as it will when it is loaded."""
        try:
            with changed(self, _learning=None):
                self._set_dropout()
                yield
        finally:
            self._set_dropout()

    @contextmanager
    def scratch(self, config: LoraConfig) -> Iterator[list[nn.Parameter]]:
        """Inside the context, a new trainable float32 adapter is on; after it, it is gone and the one before is on."""
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
        """The weights of the adapter that is on, under the keys of peft files.

        Raises:
            AdapterError: none is on.
        """
        if self._current is None:
            raise AdapterError("no adapter is on; attach or load one first.")
        return cast(dict[str, torch.Tensor], get_peft_model_state_dict(self._peft, adapter_name=self._current))

    def save(self, folder: str | Path) -> None:
        """Write the adapter that is on as peft files."""
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.state().items()}
        config = cast(PeftModel, self._peft).peft_config[cast(str, self._current)]
        with changed(config, inference_mode=True):
            config.save_pretrained(str(folder))  # which makes the folder
        save_file(state, Path(folder) / WEIGHTS, metadata={"format": "pt"})

    def release(self) -> None:
        """Take every adapter off and restore the base's own modules."""
        if self._peft is not None:
            self._peft.unload()
        self._peft, self._current, self._learning = None, None, None
        self._slots, self._in_slot, self._fixed = {}, {}, {}
        for parameter, flag in self._grad_flags.items():
            parameter.requires_grad_(flag)

    def _make_slot(self, config: PeftConfig) -> str:
        slot = f"slot{self._made}"
        self._made += 1
        if self._peft is None:
            self._grad_flags = {p: p.requires_grad for p in self._model.parameters()}
            # peft reads an attribute of transformers under its old name
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                self._peft = PeftModel(self._model, config, adapter_name=slot, autocast_adapter_dtype=False)
        else:
            self._peft.add_adapter(slot, config, autocast_adapter_dtype=False)
        self._slots[_shape_key(config)] = slot
        return slot

    @torch.no_grad()
    def _set_identities(self, slot: str) -> list[nn.Parameter]:
        fixed = []
        for module in self._tuned():
            if slot in module.lora_A:
                a, b = (cast(nn.Linear, part[slot]).weight for part in (module.lora_A, module.lora_B))
                square, trained = (b, a) if len(b) == b.shape[1] else (a, b)
                square.copy_(torch.eye(len(square)))
                trained.zero_()
                fixed.append(cast(nn.Parameter, square))
        return fixed

    def _drop(self, slot: str) -> None:
        self._slots = {key: name for key, name in self._slots.items() if name != slot}
        if not self._slots:
            self.release()
        elif self._peft is not None:
            # peft warns that it switches to another adapter; the caller switches anyway
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                self._peft.delete_adapter(slot)

    def _switch(self, slot: str | None, *, trainable: bool = True) -> None:
        self._current = slot
        for module in self._tuned():
            module.enable_adapters(slot is not None)
            if slot is not None:
                module.set_adapter(slot)
        for parameter in self._fixed.get(slot or "", ()):
            parameter.requires_grad_(False)
        if slot is not None and not trainable:
            self._model.requires_grad_(False)
        self._set_dropout(trainable)

    def _set_dropout(self, trainable: bool = True) -> None:
        # peft makes its modules in training mode, in which the dropout of a loaded adapter would act
        for module in self._tuned():
            for slot, dropout in module.lora_dropout.items():
                dropout.train(trainable and slot == self._learning)

    def _tuned(self) -> list[LoraLayer]:
        return [module for module in self._model.modules() if isinstance(module, LoraLayer)]


def _shape_key(config: PeftConfig) -> str:
    """Canonical JSON of what makes the modules of an adapter: adapters with the same key share a slot."""
    irrelevant = ("inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "task_type", "peft_version")
    kept = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items() if k not in irrelevant}
    return json.dumps(kept, sort_keys=True, default=str)


def _mismatch(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    """How the keys and shapes of loaded weights differ from those of a slot; "" if they match."""
    lost, missing = weights.keys() - expected.keys(), expected.keys() - weights.keys()
    problems = {"keys find no place": lost, "expected keys are missing": missing}
    parts = [f"{len(keys)} {problem}, such as {min(keys)}" for problem, keys in problems.items() if keys]
    if wrong := sorted(key for key in weights.keys() & expected.keys() if weights[key].shape != expected[key].shape):
        found, wanted = (tuple(state[wrong[0]].shape) for state in (weights, expected))
        parts.append(f"{len(wrong)} have another shape, such as {wrong[0]}: {found}, expected {wanted}")
    return "; ".join(parts)
