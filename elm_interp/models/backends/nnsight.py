"""The nnsight back end: each pass is one trace of nnsight, on a copy of the modules that shares the model's weights.

A trace reads and edits sites in the order of the pass and stops after the last of them, so later layers and the
unembedding do not run.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from einops import rearrange
from torch import Tensor, nn
from transformers import AutoTokenizer, Cache, PreTrainedModel, PreTrainedTokenizerBase

from elm_interp.errors import BackendError, UnknownSiteError
from elm_interp.models.backends.contract import Edit, Keep, KeptEdits, backend, import_extra, quiet
from elm_interp.models.backends.patterns import COMPUTED, edit_rotated, edit_scores, edit_weights, scores_alone
from elm_interp.models.backends.shared_weights import Followed, copy_modules
from elm_interp.models.backends.torch import forward_inputs, step_inputs
from elm_interp.models.backends.views import through, view
from elm_interp.models.batch import Batch
from elm_interp.models.changed import changed
from elm_interp.models.layout import Layout
from elm_interp.models.sites import Base, Place, Site, in_pass_order, site_names

if TYPE_CHECKING:
    from nnsight import TransformersModel

_CALL = "attention_interface"
"""Name of a family's call of its attention function."""


class Visit(NamedTuple):
    """What a trace does at one place. It travels to a remote model, so it holds plain data and functions only."""

    place: Place
    edits: tuple[Edit, ...] = ()
    keep: Keep | None = None
    """What to keep of the activation; None if it is not read."""
    hold: Base | None = None
    """As what the activation is kept for a later visit; None if it is not."""


@backend("nnsight")
class NNsightBackend(KeptEdits):
    """Reads and edits sites in traces."""

    name: str

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.model = model
        self.layout = layout
        self._where: dict[str, Any] = {}
        self._traced: Callable[[], Any] = Followed(model, import_extra("nnsight").NNsight).get

    def run(self, batch: Batch, reads: Mapping[Site, Keep] | None = None) -> tuple[dict[Site, Tensor], Tensor | None]:
        """See `Backend.run`."""
        inputs = forward_inputs(self.layout.backbone_of(self.model), batch)
        if not reads:
            return {}, self._hidden(inputs)
        sites = in_pass_order({**reads, **dict(self.edits)})
        sites = sites[: max(sites.index(site) for site in reads) + 1]
        values = self._values(inputs, self._visits(sites, reads))
        return dict(zip([site for site in sites if site in reads], values, strict=True)), None

    def step(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """See `Backend.step`."""
        backbone = self.layout.backbone_of(self.model)
        inputs = step_inputs(backbone, ids, mask, positions, past_key_values=cache, use_cache=True)
        return self._hidden(inputs), cache

    def _hidden(self, inputs: dict[str, Any]) -> Tensor:
        """Hidden states after the final norm, with all edits."""
        return self._after_edits(inputs, "", _whole)

    def _after_edits(self, inputs: dict[str, Any], path: str, keep: Keep) -> Tensor:
        """What is kept of the output of a module after all sites ("" for the final norm), with all edits."""
        edited = self._visits(in_pass_order(dict(self.edits)), {})
        last = self.layout.final_norm or self.layout.block(self._n_layers - 1)
        return self._values(inputs, [*edited, Visit(Place(path or last, "output"), keep=keep)])[0]

    @property
    def _n_layers(self) -> int:
        return len(cast(nn.ModuleList, self.model.get_submodule(self.layout.blocks)))

    def _visits(self, sites: list[Site], reads: Mapping[Site, Keep]) -> list[Visit]:
        """Visits of sites in the order of the pass, and before them of what they are added to."""
        found: list[tuple[float, float, Visit]] = []
        names = site_names()
        for site in sites:
            place = site.find(self.model, self.layout)
            edits = tuple(edit for edited, edit in self.edits if edited == site)
            # sites outside of the blocks are in order already
            order = (site.layer if site.kind.in_blocks else float(len(found) and "inf"), names.index(site.name))
            if place.base is not None:
                held = Place(place.base.path, place.base.side)
                found.append((order[0], names.index(place.base.after) + 0.5, Visit(held, hold=place.base)))
            found.append((*order, Visit(place, edits, reads.get(site))))
        return [visit for *_, visit in sorted(found, key=lambda item: item[:2])]

    def _values(self, inputs: dict[str, Any], visits: list[Visit]) -> list[Tensor]:
        """What the visits keep in one trace."""
        save = import_extra("nnsight").save
        traced, where = self._traced(), self._where
        # only eager attention forms the weights that a pattern is
        eager = {"_attn_implementation": "eager"} if any(visit.place.side in COMPUTED for visit in visits) else {}
        with changed(traced._module.config, **eager), traced.trace(**inputs, **where) as tracer:
            values = save(visit_all(traced, visits))
            tracer.stop()
        return cast(list[Tensor], values)


class RemoteBackend(NNsightBackend):
    """The same traces, run on NDIF, which has the weights; this machine has only the modules without them."""

    def __init__(self, native: "TransformersModel", layout: Layout, remote: bool | str) -> None:
        super().__init__(native._module, layout)
        self.native = native
        self._traced, self._where = lambda: native, {"remote": remote}
        # what a trace calls is sent with it
        import_extra("nnsight").register("elm_interp")

    def step(self, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Cache]:
        """Refused: the cache would be sent back and forth with each token."""
        raise BackendError(
            "a remote model is not run token by token; generate with lm.as_nnsight().generate(..., remote=True)."
        )

    def logits(self, batch: Batch, keep: Keep) -> Tensor:
        """What is kept of the output of the unembedding."""
        unembedding = cast(Any, self.model).get_output_embeddings()
        path = next(name for name, module in self.model.named_modules() if module is unembedding)
        return self._after_edits(forward_inputs(self.layout.backbone_of(self.model), batch), path, keep)


class RemoteAdapters:
    """Adapters of a remote model: hub ids, put on where the model runs."""

    def __init__(self, native: "TransformersModel") -> None:
        self._native = native

    @property
    def current(self) -> str | None:
        """The hub id of the adapter that is on; None for the bare base."""
        return cast(str | None, self._native.peft)

    def load(self, which: str) -> None:
        """Put on the adapter of a hub id."""
        self._native.load_adapter(which)

    def off(self) -> None:
        """Run the bare base."""
        self._native.load_adapter(None)

    @contextmanager
    def use(self, which: str | None) -> Iterator[None]:
        """Inside the context, run the adapter of a hub id, or the bare base for None; restored after, also on error."""
        before = self.current
        try:
            self._native.load_adapter(which)
            yield
        finally:
            self._native.load_adapter(before)


def remote_model(name: str, adapter: str | None) -> "TransformersModel":
    """A hub model without its weights, to be traced on NDIF."""
    return _wrapped(name, tokenizer=AutoTokenizer.from_pretrained(name), peft=adapter)


def visit_all(traced: Any, visits: list[Visit]) -> list[Tensor]:
    """Inside a trace: wait for each module in turn, edit what is there, and read it."""
    found: list[Tensor] = []
    held: dict[Base, Tensor] = {}
    for visit in visits:
        place = visit.place
        if place.side in COMPUTED:
            value = _visit_attention(traced.get(place.path), place.side, visit.edits)
        else:
            module = traced.get(place.path)
            whole = getattr(module, place.side)
            several = isinstance(whole, tuple | list)
            value = whole[0] if several else whole
            for edit in visit.edits:
                edited = through(place, edit, held)(value)
                if edited is not None:
                    value = edited
                    setattr(module, place.side, type(whole)([value, *whole[1:]]) if several else value)
        if visit.hold is not None:
            held[visit.hold] = value
        if visit.keep is not None:
            found.append(visit.keep(view(place, value, held)))
    return found


def _visit_attention(attention: Any, side: str, edits: tuple[Edit, ...]) -> Tensor:
    """Inside a trace: edit what attention computes between its projections, and return it."""
    calls = [name for name in attention.source.names if name.startswith(_CALL)]
    if not calls:
        raise UnknownSiteError(f"nnsight finds no {side}: this attention does not use transformers' interface.")
    call = getattr(attention.source, calls[-1])
    if side in ("rot_q", "rot_k"):
        arguments, more = call.inputs
        new = arguments[1].shape[2]
        value = arguments[1 if side == "rot_q" else 2]
        for edit in edits:
            edit_rotated(edit, value, new)
        return rearrange(value[:, :, -new:], "batch head pos d_head -> batch pos head d_head")
    keys, sinks = call.inputs[0][2].shape[2], getattr(attention, "sinks", None)
    # of a call of the softmax its own inputs and output
    softmax = getattr(call.source, [name for name in call.source.names if "softmax" in name][-1])
    arguments, more = softmax.inputs
    value = arguments[0]
    sinks = sinks if value.shape[-1] == keys + 1 else None
    if side == "attn_scores":
        for edit in edits:
            value = edit_scores(edit, value, sinks)
            softmax.inputs = ((value, *arguments[1:]), more)
        return scores_alone(value, sinks)
    value = softmax.output
    for edit in edits:
        value = edit_weights(edit, value, sinks)
        softmax.output = value
    return value if sinks is None else value[..., :-1]


def _whole(value: Tensor) -> Tensor:
    return value


def own_wrapper(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "TransformersModel":
    """The wrapper of nnsight for a user's traces: on shared weights, with a copy of the tokenizer, which it changes."""
    return _wrapped(copy_modules(model), tokenizer=copy.deepcopy(tokenizer))


def _wrapped(model: Any, **settings: Any) -> "TransformersModel":
    wrapper = import_extra("nnsight").TransformersModel
    with quiet():  # else transformers prints the generation settings
        return wrapper(model, task="text-generation", **settings)
