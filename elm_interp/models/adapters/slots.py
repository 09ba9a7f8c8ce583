"""The adapters on one loaded base: attached, loaded from peft files, switched on and off, swapped, saved."""

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import save_file
from torch import nn

from elm_interp.errors import AdapterError
from elm_interp.models.adapters.bare import check_same, merge_copy, probe, rebuilt_on_error
from elm_interp.models.adapters.files import WEIGHTS, file_state, no_effect, read_adapter
from elm_interp.models.adapters.lora import WholeWeights
from elm_interp.models.adapters.matching import listed, lora_alone, mismatch, shape_key
from elm_interp.models.adapters.support import check_trainable
from elm_interp.models.adapters.whole import Replacement, is_lora, replacements
from elm_interp.models.changed import changed
from elm_interp.models.distributed import sharded


@dataclass(frozen=True)
class Held:
    """What is in a slot, beside its LoRA matrices."""

    label: str
    """The path it was loaded from, or "new"."""
    state: str = ""
    """Of its files when they were read; "" if the weights may have changed since."""
    config: LoraConfig | None = None
    """As it was read; None for a new adapter, whose config is peft's."""
    whole: tuple[Replacement, ...] = ()
    """What it puts in the place of tensors of the base."""
    saved: dict[str, torch.Tensor] = field(default_factory=dict)
    """These tensors, as in its file."""


State: TypeAlias = dict[str, tuple[dict[str, torch.Tensor], Held]]
"""Of slots: their LoRA matrices, and what else they hold."""


_MISFITS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, re.error)
"""What peft raises for a config that does not fit a model."""


class AdapterSlots:
    """The adapters on one base model.

    LoRAs of one shape (rank, layers, modules) share a slot, so going through the checkpoints of a run copies a few
    tensors instead of building modules again. Whole tensors of the base that an adapter replaces (see `whole`) stand
    there while it is on. Each new slot is checked: with it off, the model gives the base's logits to the bit. `release`
    takes everything off and leaves the bare base.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._peft: PeftModel | None = None
        self._slots: dict[str, str] = {}  # adapter shape, as canonical JSON -> peft's name of the slot
        self._current: str | None = None  # the slot that is on
        self._held: dict[str, Held] = {}  # slot -> what is in it
        self._replaced: list[Replacement] = []  # the base's own tensors, where others stand now
        self._made = 0  # slots ever made
        self._fixed: dict[str, list[nn.Parameter]] = {}  # slot -> the identities of `WholeWeights`
        self._open: list[tuple[str | None, State]] = []  # what each open `use` restores, outermost first
        self._learning: str | None = None  # the slot in training, the only one with active dropout
        self._grad_flags: dict[nn.Parameter, bool] = {}  # from before peft froze the base
        self._order: dict[nn.Module, list[str]] = {}  # of the parameters of modules that have several

    @property
    def current(self) -> str | None:
        """The adapter that is on: the path it was loaded from, "new" if `attach` made it, None for the bare base."""
        return self._held[self._current].label if self._current else None

    def attach(self, config: LoraConfig) -> list[nn.Parameter]:
        """Put on a new trainable adapter (B zero) in the dtype of the base, and return its parameters.

        peft's own default, float32, casts every input and output, which makes a bfloat16 base a third slower. A trainer
        keeps float32 master weights instead.

        Raises:
            AdapterError: the config trains weights of the base itself, or would change the base.
        """
        check_trainable(config)
        with self._undone_on_error():
            try:
                self._learning = slot = self._make_slot(config)
            except AdapterError:
                raise
            except _MISFITS as error:
                raise AdapterError(f"this configuration does not fit the model: {error}") from error
            self._held[slot] = Held("new")
            self._check_head(slot)
        if isinstance(config, WholeWeights):
            self._fixed[slot] = self._set_identities(slot)
        self._switch(slot)
        return [p for p in self._model.parameters() if p.requires_grad]

    def load(self, folder: str | Path, *, trainable: bool = False) -> None:
        """Put on the adapter saved in a peft folder (or hub id); its files are read again only if they changed.

        Raises:
            AdapterError: no peft files, not LoRA, of a kind that is not run, keys that do not match the model, or no
                effect. The model is then as before.
        """
        state = file_state(folder)
        same = (s for s, held in self._held.items() if state and (held.label, held.state) == (str(folder), state))
        slot = next(same, None)
        if slot is None or trainable:
            slot = self._read(folder, state, trainable)
        if trainable:
            self._learning = slot
        self._switch(slot, trainable=trainable)

    def _read(self, folder: str | Path, state: str, trainable: bool) -> str:
        """Read an adapter's files into a slot of its shape, which stays off."""
        config, weights = read_adapter(folder)
        lora = {key: tensor for key, tensor in weights.items() if is_lora(key)}
        bare = lora_alone(config)
        shape = shape_key(bare)
        with self._undone_on_error():
            slot = self._slots.get(shape)
            try:
                slot = self._make_slot(bare) if slot is None else slot
                whole, problems = replacements(self._model, config, weights)
            except AdapterError as error:
                raise AdapterError(f"the adapter in {folder} cannot be put on: {error}") from error
            except _MISFITS as error:
                raise AdapterError(f"the adapter in {folder} does not fit this model: {error}") from error
            matrices = self._lora_state(slot)
            problems = [*mismatch(lora, matrices), *problems]
            if problems:
                raise AdapterError(f"the adapter in {folder} does not fit this model: {listed(problems)}")
            if not whole and (why := no_effect(lora)) and not config.use_dora:
                raise AdapterError(f"the adapter in {folder} has no effect: {why}, and all else is as in the base.")
            self._check_use(folder, slot, whole, trainable)
        if any(slot == before for before, _ in self._open):
            # an open `use` restores this slot: keep its weights
            kept = {key: tensor.clone() for key, tensor in matrices.items()}
            self._open[-1][1].setdefault(slot, (kept, self._held[slot]))
        self._fill(slot, lora)
        saved = {key: tensor for key, tensor in weights.items() if not is_lora(key)}
        self._held[slot] = Held(str(folder), "" if trainable else state, config, tuple(whole), saved)
        return slot

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
            else:
                self.load(which)
            yield
        finally:
            before, kept = self._open.pop()
            for slot, (matrices, held) in kept.items():
                self._fill(slot, matrices)
                self._held[slot] = held
            self._switch(before)
            for parameter, flag in grads.items():
                parameter.requires_grad_(flag)

    def merged(self) -> nn.Module:
        """A copy of the model in memory of its own, with the adapter that is on merged into its weights.

        Raises:
            AdapterError: the adapter cannot be merged.
        """
        if self._peft is None:
            return copy.deepcopy(self._model)
        return merge_copy(self._peft, self._current).requires_grad_(False)

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
        return {**self._lora_state(self._current), **self._held[self._current].saved}

    def save(self, folder: str | Path) -> None:
        """Write the adapter that is on as peft files."""
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.state().items()}
        slot = cast(str, self._current)
        config = self._held[slot].config or cast(PeftModel, self._peft).peft_config[slot]
        with changed(config, inference_mode=True):
            config.save_pretrained(str(folder))  # which makes the folder
        save_file(state, Path(folder) / WEIGHTS, metadata={"format": "pt"})

    def release(self) -> None:
        """Take every adapter off and restore the base's own modules."""
        self._switch(None)
        if self._peft is not None:
            self._peft.unload()
        self._peft, self._learning = None, None
        self._slots, self._held, self._fixed = {}, {}, {}
        for parameter, flag in self._grad_flags.items():
            parameter.requires_grad_(flag)

    def _make_slot(self, config: LoraConfig) -> str:
        """A new slot, off, for adapters of this config.

        Raises:
            AdapterError: with it off, the model would not be the base any more.
        """
        slot, shape = f"slot{self._made}", shape_key(config)  # peft changes the config
        self._made += 1
        self._switch(None)
        before = probe(self._model)
        settings = self._model.config
        # peft sets it to 1
        parallel = {"pretraining_tp": settings.pretraining_tp} if hasattr(settings, "pretraining_tp") else {}
        # its advice on tied weights and modules without a match is for training and merging by hand
        with warnings.catch_warnings(action="ignore"), changed(settings, **parallel):
            if self._peft is None:
                self._grad_flags = {p: p.requires_grad for p in self._model.parameters()}
                self._order = {m: list(m._parameters) for m in self._model.modules() if len(m._parameters) > 1}
                self._peft = PeftModel(self._model, config, adapter_name=slot, autocast_adapter_dtype=False)
            else:
                self._peft.add_adapter(slot, config, autocast_adapter_dtype=False)
        self._slots[shape] = slot
        self._switch(None)
        check_same(self._model, before)
        return slot

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Inside the context an error leaves model and slots as before; adapters are off in it."""
        flags = {p: p.requires_grad for p in self._model.parameters()}
        on, before = self._current, (self._peft, self._learning, dict(self._slots), dict(self._held))
        self._switch(None)
        try:
            with rebuilt_on_error(self._model):
                yield
        except BaseException:
            self._peft, self._learning, self._slots, self._held = before
            self._switch(on)
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)
            raise

    def _lora_state(self, slot: str) -> dict[str, torch.Tensor]:
        """The LoRA matrices of a slot, under the keys of peft files."""
        with warnings.catch_warnings(action="ignore"):  # it takes a bias of B for half a matrix
            found = get_peft_model_state_dict(self._peft, adapter_name=slot, save_embedding_layers=False)
        return cast(dict[str, torch.Tensor], found)

    @torch.no_grad()
    def _fill(self, slot: str, matrices: dict[str, torch.Tensor]) -> None:
        # peft's own way renames some keys for models whose experts were renamed, and then loads nothing for them
        for key, own in self._lora_state(slot).items():
            own.copy_(matrices[key])

    def _check_use(self, folder: str | Path, slot: str, whole: list[Replacement], trainable: bool) -> None:
        if whole and sharded():
            raise AdapterError(
                f"the adapter in {folder} replaces {len(whole)} whole weights, which a model spread over processes "
                "cannot swap; expected LoRA matrices alone. Run it in one process."
            )
        if whole and trainable:
            raise AdapterError(
                f"the adapter in {folder} replaces {len(whole)} whole weights of the base, which are not trained here; "
                "expected LoRA matrices alone. Merge it (peft's merge_and_unload) and train a new one on that model."
            )
        if trainable:
            self._check_head(slot)

    def _check_head(self, slot: str) -> None:
        head = cast(Any, self._model).get_output_embeddings()
        if isinstance(head, LoraLayer) and (slot in head.lora_A or slot in head.lora_embedding_A):
            raise AdapterError(
                "an adapter on the unembedding is not trained here, since losses take their gradients past it; "
                "expected projections of the blocks. Leave it out of target_modules."
            )

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
        self._held.pop(slot, None)
        if not self._slots:
            self.release()
        elif self._peft is not None:
            # peft warns that it switches to another adapter; the caller switches anyway
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                self._peft.delete_adapter(slot)

    def _switch(self, slot: str | None, *, trainable: bool = True) -> None:
        self._current = slot
        for place, own in self._replaced:
            place.put(own)
        whole = self._held[slot].whole if slot is not None else ()
        self._replaced = [Replacement(place, place.tensor) for place, _ in whole]
        for place, tensor in whole:
            place.put(tensor)
        for module in self._tuned():
            module.enable_adapters(slot is not None)
            if slot is not None:
                module.set_adapter(slot)
            if isinstance(module, ParamWrapper):
                self._in_order(module.get_base_layer())
        for parameter in self._fixed.get(slot or "", ()):
            parameter.requires_grad_(False)
        if slot is not None and not trainable:
            self._model.requires_grad_(False)
        self._set_dropout(trainable)

    def _in_order(self, module: nn.Module) -> None:
        # peft takes a parameter out and puts it back, as the last one, in each pass
        held = module._parameters
        for name in self._order.get(module, ()):
            held[name] = held.pop(name)

    def _set_dropout(self, trainable: bool = True) -> None:
        # peft makes its modules in training mode, in which the dropout of a loaded adapter would act
        for module in self._tuned():
            for slot, dropout in module.lora_dropout.items():
                dropout.train(trainable and slot == self._learning)

    def _tuned(self) -> list[LoraLayer]:
        return [module for module in self._model.modules() if isinstance(module, LoraLayer)]
