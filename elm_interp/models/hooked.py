"""HookedLM: one language model that can be read, edited, and switched between its base and its adapters.

    lm = load_model("smollm2-135m", adapter="runs/demo/checkpoints/checkpoint-000060")
    lm.log_probs("Harry Potter lives at", ["Hogwarts", "Baker Street"])     # nats, one number an answer
    lm.generate("Harry Potter lives at")                                    # a list with one text

    batch = lm.tokenize(["Who lives at Baker Street?"])
    cache = lm.run_with_cache(batch, sites=["resid_post"], layers=range(30), positions="last")
    cache["resid_post"]                    # (batch, layer, d_model)
    cache["blocks.7.hook_resid_post"]      # (batch, d_model)
    with lm.hooks({"blocks.7.hook_resid_post": lambda x: 0 * x}, positions="last"):
        lm.logits(batch)                   # (batch, d_vocab), with the last token's stream zeroed after block 7
    with lm.adapter(None):
        lm.logits(batch)                   # the untouched base, on the same weights

The numbers do not depend on the padding side or, beyond rounding, on the rest of the batch. See `sites` for names.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from elm_interp.errors import BackendError
from elm_interp.models import generation, scoring, tokens
from elm_interp.models.adapters.lora import lora_config
from elm_interp.models.adapters.slots import AdapterSlots
from elm_interp.models.backends import nnsight, transformer_lens
from elm_interp.models.backends.contract import Backend, Edit, Keep, make_backend
from elm_interp.models.batch import Batch, Positions, pick, pick_pattern
from elm_interp.models.cache import ActivationCache
from elm_interp.models.changed import changed
from elm_interp.models.checks import check_passes, logit_scales, summed
from elm_interp.models.edits import PositionEdit, running
from elm_interp.models.layout import Layout, find_layout
from elm_interp.models.shared_prefix import full_cache, keeps_keys, run_again
from elm_interp.models.sites import KEYED, Site, resolve_sites

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge


class HookedLM:
    """A decoder-only language model of transformers behind one reading and editing interface.

    Attributes:
        model: the transformers model, with the adapter that is on (if any) inside.
        tokenizer: its tokenizer, never changed.
        name: what it was loaded from.
        layout: where its parts are.
        adapters: the adapters on it; `adapter` switches them.
        keeps_keys: whether its cache holds keys and values of tokens and nothing else; if not, it runs whole rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "",
        layout: Layout | None = None,
        backend: str | Backend = "torch",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        found = find_layout(model, layout)
        self.layout = found if next(model.parameters()).is_meta else summed(model, found)
        self.keeps_keys = keeps_keys(model, self.layout.backbone_of(model))
        self.adapters = AdapterSlots(model)
        self._backend = make_backend(backend, model, self.layout) if isinstance(backend, str) else backend
        self._softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        # of an unembedding that has more rows than there are tokens
        self._n_logits: int | None = getattr(model.config.get_text_config(), "unpadded_vocab_size", None)
        self._logit_scale = logit_scales(model.config)[0]
        self._position_edits: list[PositionEdit] = []  # of the `hooks` contexts that are open
        if not self.is_remote:
            check_passes(self)

    @property
    def backend(self) -> str:
        """Name of the back end that runs the passes, such as "torch"."""
        return self._backend.name

    @property
    def is_remote(self) -> bool:
        """Whether the weights are on another machine, which runs the passes."""
        return self.embedding.weight.is_meta

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return cast(nn.ModuleList, self.model.get_submodule(self.layout.blocks))

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        weight = getattr(self.layout.norm_of(self.model), "weight", None)
        return self.embedding.weight.shape[1] if weight is None else weight.shape[-1]

    @property
    def d_vocab(self) -> int:
        """Number of logits, which may exceed the tokenizer's vocabulary."""
        return min(self.unembedding.weight.shape[0], self._n_logits or sys.maxsize)

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @property
    def unembedding(self) -> nn.Linear:
        """The linear layer from the residual stream to logits."""
        return cast(nn.Linear, self.model.get_output_embeddings())  # type: ignore[no-untyped-call]

    @property
    def device(self) -> torch.device:
        """The device for tokens; `tokenize` puts them there."""
        return torch.device("cpu") if self.is_remote else self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights of the base."""
        return self.embedding.weight.dtype

    def __repr__(self) -> str:
        described = ", ".join(f"{key} {value}" for key, value in self._described().items())
        return f"HookedLM({self.name!r}: {described})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in self._described().items())
        return f"<table><caption>HookedLM {self.name}</caption>{rows}</table>"

    def _described(self) -> dict[str, str]:
        return {
            "class": type(self.model).__name__,
            "layers": str(self.n_layers),
            "d_model": str(self.d_model),
            "dtype": f"{str(self.dtype).removeprefix('torch.')} on {self.device}",
            "adapter": self.adapters.current or "none",
            "backend": self.backend,
        }

    # -- tokens ---------------------------------------------------------------------------------------------------

    tokenize = tokens.tokenize
    encode = tokens.encode
    pad = tokens.pad
    pad_id = property(tokens.pad_id)
    start_ids = property(tokens.start_ids)
    n_ctx = property(tokens.n_ctx)

    # -- reading --------------------------------------------------------------------------------------------------

    def run_with_cache(
        self,
        batch: Batch,
        *,
        sites: str | Iterable[str] = "resid_post",
        layers: int | Iterable[int] | None = None,
        positions: Positions = "last",
        grad: bool = False,
    ) -> ActivationCache:
        """Activations at sites, in one pass without the unembedding that stops after the last site asked for.

        Args:
            batch: tokens, from `tokenize`.
            sites: names, see `elm_interp.models.sites`; a short name stands for all of `layers`.
            layers: 0-based blocks of short names, negative ones from the end; None means all.
            positions: which tokens of each row; only they are kept in memory.
            grad: keep the graph for back-propagation.

        Returns:
            A mapping; `cache["resid_post"]` is (batch, layer, d_model) for one position a row, and
            (batch, layer, pos, d_model) for several or "all" (left-aligned, zeros after a row's end). A `z` has
            (head, d_head) for d_model. A `pattern` is read at query positions: (batch, layer, head, [pos,] key).

        Raises:
            UnknownSiteError: a site or layer that the model does not have.
            ValueError: a position outside some row.
        """
        wanted, batch = self._sites(sites, layers), self._placed(batch)
        keep, keep_pattern = (
            partial(picker, mask=batch.attention_mask, positions=positions) for picker in (pick, pick_pattern)
        )
        reads = {site: keep_pattern if side in KEYED else keep for site, side in wanted.items()}
        with torch.set_grad_enabled(grad):
            found, _ = self._run(batch, reads)
        return ActivationCache({site: found[site] for site in wanted}, batch, positions)

    def logits(
        self, batch: Batch, *, positions: Positions = "last", grad: bool = False
    ) -> Float[Tensor, "batch *pos d_vocab"]:
        """Next-token logits at positions; the unembedding runs on these alone."""
        batch = self._placed(batch)
        mask = batch.attention_mask
        with torch.set_grad_enabled(grad):
            if isinstance(self._backend, nnsight.RemoteBackend):
                with running(self._position_edits, mask, mask.shape[1], cached=False):
                    return self._scaled(self._backend.logits(batch, partial(pick, mask=mask, positions=positions)))
            return self.unembed(pick(self.hidden(batch, grad=grad), mask, positions))

    def hidden(self, batch: Batch, *, grad: bool = False) -> Float[Tensor, "batch pos d_model"]:
        """Hidden states after the final norm, which the unembedding reads, at every padded position."""
        with torch.set_grad_enabled(grad):
            placed = self._placed(batch)
            hidden = cast(Tensor, self._run(placed)[1])
            return hidden if self.keeps_keys else batch.to(self.device).back(hidden)

    def _placed(self, batch: Batch) -> Batch:
        """A batch on the model's device; without padding before its rows if that would change what they give."""
        batch = batch.to(self.device)
        # ids of padding are never looked up, whatever they are
        batch = Batch(batch.input_ids.masked_fill(batch.attention_mask == 0, 0), batch.attention_mask)
        return batch if self.keeps_keys else batch.on_the_left()

    def step(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch past_and_new"],
        position_ids: Int[Tensor, "batch new"],
        cache: Cache | None = None,
        *,
        grad: bool = False,
    ) -> tuple[Float[Tensor, "batch new d_model"], Cache]:
        """Run new tokens after those in a key-value cache; returns hidden states (as `hidden`) and the longer cache.

        The mask covers the cached tokens and the new ones; positions count each row's own real tokens. These must be
        one unbroken run of the mask: padding inside a row pushes its first tokens out of a sliding window.
        """
        if not self.keeps_keys:
            return run_again(self, input_ids, attention_mask, cache, grad=grad)
        new = input_ids.shape[1]
        tokens.check_mask(self, attention_mask, attention_mask.shape[1] - input_ids.shape[1])
        with torch.set_grad_enabled(grad), running(self._position_edits, attention_mask, new, cached=True):
            past = full_cache(self.model.config) if cache is None else cache
            return self._backend.step(input_ids, attention_mask, position_ids, past)

    def _run(self, batch: Batch, reads: Mapping[Site, Keep] | None = None) -> tuple[dict[Site, Tensor], Tensor | None]:
        mask = batch.attention_mask
        tokens.check_mask(self, mask)
        with running(self._position_edits, mask, mask.shape[1], cached=False):
            return self._backend.run(batch, reads)

    def _sites(self, names: str | Iterable[str], layers: int | Iterable[int] | None) -> dict[Site, str]:
        """The sites of these names, each with the side of its module that it is."""
        return {site: site.find(self.model, self.layout).side for site in resolve_sites(names, layers, self.n_layers)}

    generate = generation.generate
    log_probs = scoring.log_probs

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Logits of hidden states after the final norm."""
        return self._scaled(self.unembedding(self._head(hidden)))

    def _head(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.model.get_submodule(self.layout.head)(hidden)) if self.layout.head else hidden

    def _scaled(self, logits: Tensor) -> Tensor:
        if self._n_logits is not None:
            logits = logits[..., : self._n_logits]
        if self._logit_scale != 1:  # each operation here is a pass over the vocabulary
            logits = logits * self._logit_scale
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)

    def unembed_gradient(
        self,
        grad: Float[Tensor, "*batch d_vocab"],
        logits: Float[Tensor, "*batch d_vocab"],
        hidden: Float[Tensor, "*batch d_model"],
    ) -> Float[Tensor, "*batch d_model"]:
        """The gradient at hidden states, from the gradient at their logits through the frozen unembedding."""
        if self._softcap is not None:
            grad = grad * (1 - (logits.float() / self._softcap) ** 2)
        weight = self.unembedding.weight[: grad.shape[-1]]
        found = grad.to(weight.dtype) @ (weight * self._logit_scale if self._logit_scale != 1 else weight)
        if not self.layout.head:
            return found
        with torch.enable_grad():
            read = hidden.detach().requires_grad_()
            return torch.autograd.grad(self._head(read), read, found.to(read))[0]

    # -- editing --------------------------------------------------------------------------------------------------

    @contextmanager
    def hooks(self, edits: Mapping[str, Edit], *, positions: Positions = "all") -> Iterator["HookedLM"]:
        """Replace activations in every pass of this object inside the context: reading, scoring, generation.

        Args:
            edits: site name to a function of the activation that returns its replacement or changes it in place; a
                short name edits that site at every layer.
            positions: "all" gives an edit the whole padded activation (shapes as in `sites`). "last" or an int gives
                it that token of each row, (batch, d_model), several ints give (batch, k, d_model), as `run_with_cache`
                reads them on either padding side; only these are replaced.
                Positions count a row's own real tokens, with cached ones in generation and in scoring after a prompt.
                "last" is the last real token of each pass: the prompt's, then each token that generation runs.
                A position that is not in a pass with a cache reads as zero, and its replacement is dropped.

        Raises:
            UnknownSiteError: a site that the model does not have; nothing is hooked then.
            ValueError: "mean"; a position outside some row of a pass without a cache; or, at the end of the context,
                a position that no pass had.
        """
        by_site = {site: (edit, side) for name, edit in edits.items() for site, side in self._sites(name, None).items()}
        if positions == "all":
            with self._backend.hooks({site: edit for site, (edit, _) in by_site.items()}):
                yield self
            return
        chosen = {site: PositionEdit(edit, positions, pattern=side in KEYED) for site, (edit, side) in by_site.items()}
        open_edits = [*self._position_edits, *chosen.values()]
        with changed(self, _position_edits=open_edits), self._backend.hooks(chosen):
            yield self
        for site, edit in chosen.items():
            if edit.acted is False:
                raise ValueError(f"the edit of {site} never acted: no row of any pass had positions {positions!r}.")

    # -- adapters -------------------------------------------------------------------------------------------------

    @contextmanager
    def adapter(self, which: str | Path | None) -> Iterator["HookedLM"]:
        """Inside the context, run the bare base (None) or the adapter of a folder or hub id; restored after.

        Raises:
            AdapterError: the folder holds no adapter that fits and has an effect.
        """
        with self.adapters.use(which):
            yield self

    lora = lora_config

    def reinitialised(self, seed: int = 1) -> "HookedLM":
        """A model of the same architecture and tokenizer with random weights, as a baseline for probes.

        Raises:
            BackendError: the weights are on another machine, or spread over several devices.
        """
        if self.is_remote:
            raise BackendError(
                "the weights of a remote model are on another machine; load it without remote to get random ones."
            )
        if len({weight.device for weight in self.model.parameters()}) > 1:
            raise BackendError("the model is spread over several devices; a second one would have to fit on one.")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of the CPU alone; the fork restores it
            model: Any = type(self.model)._from_config(deepcopy(self.model.config), dtype=self.dtype)  # type: ignore[no-untyped-call]
        model.to(self.device).eval().requires_grad_(False)
        name = f"{self.name}, random weights"
        return HookedLM(model, self.tokenizer, name=name, layout=self.layout, backend=self.backend)

    # -- native objects -------------------------------------------------------------------------------------------

    def as_transformer_lens(self) -> "TransformerBridge":
        """TransformerLens's bridge of this model as it is now, for its own tools: patching, attribution, its caches.

        It has weights of its own, with the adapter that is on merged into them, so changes to it
        (`enable_compatibility_mode` too) leave this model alone. Give it `batch.input_ids`: its own tokenization of
        text follows other rules.

        Raises:
            ImportError: the extra transformer-lens is not installed.
        """
        return transformer_lens.own_bridge(cast(PreTrainedModel, self.adapters.merged()), self.tokenizer, self.name)

    def as_nnsight(self) -> "TransformersModel":
        """The wrapper of nnsight around this model as it is now, for traces of your own.

        It shares the weights and keeps the adapter that is on now. Of a remote model it is the remote model.

        Raises:
            ImportError: the extra nnsight is not installed.
        """
        if isinstance(self._backend, nnsight.RemoteBackend):
            return self._backend.native
        return nnsight.own_wrapper(self.model, self.tokenizer)
