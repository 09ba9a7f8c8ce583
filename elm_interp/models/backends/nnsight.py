"""The nnsight back end: each pass is one trace of nnsight, on a copy of the modules that shares the model's weights.

A trace reads and edits sites in the order of the pass and stops after the last of them, so later layers and the
unembedding do not run.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import Tensor, nn
from transformers import AutoTokenizer, Cache, PreTrainedModel, PreTrainedTokenizerBase

from elm_interp.errors import BackendError
from elm_interp.models.backends.contract import (
    Edit,
    Keep,
    KeptEdits,
    backend,
    by_head,
    import_extra,
    quiet,
    split_heads,
)
from elm_interp.models.backends.shared_weights import Followed, copy_modules
from elm_interp.models.backends.torch import forward_inputs, head_count, step_inputs
from elm_interp.models.batch import Batch
from elm_interp.models.changed import changed
from elm_interp.models.layout import Layout
from elm_interp.models.sites import Site, in_pass_order

if TYPE_CHECKING:
    from nnsight import TransformersModel


class Visit(NamedTuple):
    """What a trace does at one module. It travels to a remote model, so it holds plain data and functions only."""

    path: str
    side: str
    heads: int
    """Number of heads to split the last axis into; 0 for no split."""
    edits: tuple[Edit, ...]
    keep: Keep | None
    """What to keep of the activation; None if it is not read."""


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
        values = self._values(inputs, [self._visit(site, reads.get(site)) for site in sites])
        return dict(zip([site for site in sites if site in reads], values, strict=True)), None

    def step(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """See `Backend.step`."""
        backbone = self.layout.backbone_of(self.model)
        inputs = step_inputs(backbone, ids, mask, positions, past_key_values=cache, use_cache=True)
        return self._hidden(inputs), cache

    def _hidden(self, inputs: dict[str, Any]) -> Tensor:
        """Hidden states after the final norm, with all edits."""
        return self._after_edits(inputs, self.layout.final_norm, _whole)

    def _after_edits(self, inputs: dict[str, Any], path: str, keep: Keep) -> Tensor:
        """What is kept of the output of a module after all sites, with all edits."""
        edited = [self._visit(site, None) for site in in_pass_order(dict(self.edits))]
        return self._values(inputs, [*edited, Visit(path, "output", 0, (), keep)])[0]

    def _visit(self, site: Site, keep: Keep | None) -> Visit:
        path, side = site.find(self.model, self.layout)
        heads = head_count(self.model) if site.kind.split_heads else 0
        return Visit(path, side, heads, tuple(edit for edited, edit in self.edits if edited == site), keep)

    def _values(self, inputs: dict[str, Any], visits: list[Visit]) -> list[Tensor]:
        """What the visits keep in one trace."""
        save = import_extra("nnsight").save
        traced, where = self._traced(), self._where
        # only eager attention forms the weights that a pattern is
        eager = {"_attn_implementation": "eager"} if any(visit.side == "pattern" for visit in visits) else {}
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
        if visit.keep is not None:
            found.append(visit.keep(split_heads(value, visit.heads) if visit.heads else value))
    return found


def _whole(value: Tensor) -> Tensor:
    return value


def _handle(traced: Any, visit: Visit) -> tuple[Any, str]:
    module = traced.get(visit.path)
    if visit.side != "pattern":
        return module, visit.side
    # the call of the attention function, and in it the dropout: the last operation on the weights before their use
    call = [name for name in module.source.names if name.startswith("attention_interface")][-1]
    return getattr(module.source, call).source.nn_functional_dropout_0, "output"


def own_wrapper(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "TransformersModel":
    """The wrapper of nnsight for a user's traces: on shared weights, with a copy of the tokenizer, which it changes."""
    return _wrapped(copy_modules(model), tokenizer=copy.deepcopy(tokenizer))


def _wrapped(model: Any, **settings: Any) -> "TransformersModel":
    wrapper = import_extra("nnsight").TransformersModel
    with quiet():  # else transformers prints the generation settings
        return wrapper(model, task="text-generation", **settings)
