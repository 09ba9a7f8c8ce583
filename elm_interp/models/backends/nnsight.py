"""The nnsight back end: each pass is one trace of nnsight, on a shadow of the model.

Sites are read and edited in forward order inside the trace, which stops after the last of them, so that later layers and
the head never run.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import nnsight
from nnsight import NNsight, TransformersModel
from torch import Tensor, nn
from transformers import AutoTokenizer, Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from elm_interp.errors import BackendError
from elm_interp.models.backends.contract import Edit, Keep, KeptEdits, by_head
from elm_interp.models.backends.shared_weights import Followed, shadow
from elm_interp.models.backends.torch import forward_inputs, head_count, takes_position_ids
from elm_interp.models.batch import Batch
from elm_interp.models.sites import Layout, Site


class Visit(NamedTuple):
    """What a trace does at one place."""

    site: Site
    path: str
    side: str
    heads: int
    """Split the last axis into this many, 0 not at all."""
    edits: tuple[Edit, ...]
    read: bool


class NNsightBackend(KeptEdits):
    """Reads and edits sites in traces."""

    name = "nnsight"

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self._where: dict[str, Any] = {}
        self._traced = Followed(model, NNsight)

    def run(
        self, batch: Batch, sites: Sequence[Site] = (), keep: Keep | None = None
    ) -> tuple[dict[Site, Tensor], Tensor | None]:
        """See `Backend.run`."""
        inputs = forward_inputs(self.model.get_submodule(self.layout.backbone), batch) | {"use_cache": False}
        return self._trace(inputs, sites, keep)

    def step(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """See `Backend.step`."""
        backbone = self.model.get_submodule(self.layout.backbone)
        cache = DynamicCache(config=backbone.config) if cache is None else cache  # type: ignore[arg-type]
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if takes_position_ids(backbone):
            inputs["position_ids"] = position_ids
        _, hidden = self._trace(inputs | {"past_key_values": cache, "use_cache": True}, (), None)
        return cast(Tensor, hidden), cache

    def _trace(
        self, inputs: dict[str, Any], sites: Sequence[Site], keep: Keep | None
    ) -> tuple[dict[Site, Tensor], Tensor | None]:
        visits = self._visits(sites)
        values = self._values(inputs, visits, "" if sites else self.layout.final_norm, keep)
        hidden = None if sites else values.pop()
        return dict(zip([visit.site for visit in visits if visit.read], values, strict=True)), hidden

    def _values(self, inputs: dict[str, Any], visits: list[Visit], then: str, keep: Keep | None) -> list[Tensor]:
        """What is read in one trace; at the end the output of the module `then`, if there is one."""
        traced, where = self._traced_model(), self._where
        with eager_for(traced._module, visits), traced.trace(**inputs, **where) as tracer:
            values = nnsight.save(visit_all(traced, visits, keep))
            if then:
                values.append(traced.get(then).output)
            tracer.stop()
        return values

    def _traced_model(self) -> Any:
        return self._traced.get()

    def _visits(self, sites: Sequence[Site]) -> list[Visit]:
        places = {site: self.layout.place(site) for site in (*sites, *(site for site, _ in self.edits))}
        last = max((site.order for site in sites), default=None)
        return [
            Visit(
                site,
                *places[site],
                head_count(self.model) if site.name == "z" else 0,
                tuple(edit for s, edit in self.edits if s == site),
                site in sites,
            )
            for site in sorted(places, key=lambda site: site.order)
            if last is None or site.order <= last
        ]


class RemoteBackend(NNsightBackend):
    """The same traces, run on NDIF, where the weights are; here are only the modules without them."""

    def __init__(self, native: TransformersModel, layout: Layout, remote: bool | str) -> None:
        super().__init__(native._module, layout)
        self.native = native
        self._where = {"remote": remote}
        # what a trace calls goes with it
        nnsight.register("elm_interp")

    def step(self, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Cache]:
        """Refused: the cache would travel back and forth with each token."""
        raise BackendError(
            "a remote model is not run token by token; generate with lm.as_nnsight().generate(..., remote=True)."
        )

    def head(self, batch: Batch, keep: Keep) -> Tensor:
        """What is kept of the output of the head."""
        inputs = forward_inputs(self.model.get_submodule(self.layout.backbone), batch) | {"use_cache": False}
        path = next(name for name, module in self.model.named_modules() if module is self.model.get_output_embeddings())
        visits = [*self._visits(()), Visit(Site(-1, "head"), path, "output", 0, (), True)]
        return self._values(inputs, visits, "", keep)[0]

    def _traced_model(self) -> Any:
        return self.native


class RemoteAdapters:
    """Adapters of a remote model: hub ids, put on where the model runs."""

    def __init__(self, native: TransformersModel) -> None:
        self._native = native

    @property
    def current(self) -> str | None:
        """The hub id of the adapter that is on, None for the bare base."""
        return self._native.peft

    def load(self, which: str) -> None:
        """Put on the adapter of a hub id."""
        self._native.load_adapter(which)

    def off(self) -> None:
        """Run the bare base."""
        self._native.load_adapter(None)

    @contextmanager
    def use(self, which: str | None) -> Iterator[None]:
        """Inside the context: the adapter of a hub id, or the bare base for None. Restored after, also on error."""
        before = self.current
        try:
            self._native.load_adapter(which)
            yield
        finally:
            self._native.load_adapter(before)


def remote_model(name: str, adapter: str | None) -> TransformersModel:
    """A hub model without its weights, to be traced on NDIF."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(name)
        return TransformersModel(name, tokenizer=tokenizer, task="text-generation", peft=adapter)


def visit_all(traced: Any, visits: list[Visit], keep: Keep | None) -> list[Tensor]:
    """Inside a trace: wait for each place in turn, edit what is there, and read it."""
    found = []
    for visit in visits:
        holder, attribute = _handle(traced, visit)
        whole = getattr(holder, attribute)
        value = whole[0] if isinstance(whole, tuple) else whole
        for edit in visit.edits:
            edited = (by_head(edit, visit.heads) if visit.heads else edit)(value)
            if edited is not None:
                value = edited
                setattr(holder, attribute, (value, *whole[1:]) if isinstance(whole, tuple) else value)
        if visit.read:
            value = value.unflatten(-1, (visit.heads, -1)) if visit.heads else value
            found.append(keep(visit.site, value) if keep else value)
    return found


def _handle(traced: Any, visit: Visit) -> tuple[Any, str]:
    module = traced.get(visit.path)
    if visit.side != "pattern":
        return module, visit.side
    # the call of the attention function, and in it the dropout, which is the last that the weights pass
    call = [name for name in module.source.names if name.startswith("attention_interface")][-1]
    return getattr(module.source, call).source.nn_functional_dropout_0, "output"


@contextmanager
def eager_for(model: nn.Module, visits: list[Visit]) -> Iterator[None]:
    """Inside the context the model forms its attention weights, where a visit needs them."""
    config = cast(Any, model.config)
    before = config._attn_implementation
    if any(visit.side == "pattern" for visit in visits):
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def keepable_wrapper(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformersModel:
    """The wrapper of nnsight around a shadow of the model, with a copy of the tokenizer, which it changes."""
    with quiet():
        return TransformersModel(shadow(model), tokenizer=copy.deepcopy(tokenizer), task="text-generation")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing the generation settings as a model is wrapped."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
