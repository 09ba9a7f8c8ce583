"""HookedLM: one language model that can be read, edited, and switched between its base and its adapters.

    lm = load_model("smollm2-135m", adapter="runs/demo/checkpoints/checkpoint-000060")
    batch = lm.tokenize(["Who lives at Baker Street?"])
    cache = lm.run_with_cache(batch, sites=["resid_post"], layers=range(30), positions="last")
    cache["resid_post"]                    # (batch, layer, d_model)
    cache["blocks.7.hook_resid_post"]      # (batch, d_model)
    with lm.hooks({"blocks.7.hook_resid_post": lambda x: 0 * x}):
        lm.logits(batch)                   # (batch, d_vocab), with the residual stream zeroed after block 7
    with lm.adapter(None):
        lm.logits(batch)                   # the untouched base, on the same weights

The numbers do not depend on the padding side or, beyond rounding, on what else is in the batch. See `sites` for names.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from peft import LoraConfig
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from elm_interp.errors import BackendError, LayoutError
from elm_interp.models.adapters.slots import AdapterSlots, lora_config
from elm_interp.models.backends.contract import Backend, Edit, import_backend, make_backend
from elm_interp.models.backends.torch import TorchBackend, forward_inputs
from elm_interp.models.batch import Batch, Positions, pad, pick, pick_pattern
from elm_interp.models.cache import ActivationCache
from elm_interp.models.sites import Layout, Site, find_layout, resolve_sites

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

    from elm_interp.models.backends.nnsight import RemoteBackend


class HookedLM:
    """A decoder-only language model of transformers behind one reading and editing interface.

    Attributes:
        model: the transformers model, with the adapter that is on (if any) inside.
        tokenizer: its tokenizer, never changed.
        name: what it was loaded from.
        n_layers, d_model, d_vocab: its size.
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
        self.layout = find_layout(model, layout)
        self.adapters = AdapterSlots(model)
        self._backend = make_backend(backend, model, self.layout) if isinstance(backend, str) else backend
        config = model.config
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._logit_scale: float = getattr(config, "logit_scale", None) or 1 / (
            getattr(config, "logits_scaling", None) or 1
        )
        if not self.is_remote:
            self._check_unembedding()

    @property
    def backend(self) -> str:
        """What runs the passes: "torch", "nnsight" or "transformer_lens"."""
        return self._backend.name

    @property
    def is_remote(self) -> bool:
        """Whether the weights are elsewhere, and passes run there."""
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
        return self.embedding.weight.shape[1]

    @property
    def d_vocab(self) -> int:
        """Number of rows of the head, which may exceed the tokenizer's vocabulary."""
        return self.unembedding.weight.shape[0]

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @property
    def unembedding(self) -> nn.Linear:
        """The linear layer from the residual stream to logits."""
        return cast(nn.Linear, self.model.get_output_embeddings())

    @property
    def device(self) -> torch.device:
        """Where tokens must be; `tokenize` puts them there."""
        return torch.device("cpu") if self.is_remote else self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights of the base."""
        return self.embedding.weight.dtype

    def __repr__(self) -> str:
        on = f"adapter {self.adapters.current}" if self.adapters.current else "no adapter"
        kind = type(self.model).__name__
        dtype = str(self.dtype).removeprefix("torch.")
        return f"HookedLM({self.name!r}: {kind}, {self.n_layers} layers, d_model {self.d_model}, {dtype} on {self.device}, {on})"

    # -- tokens ---------------------------------------------------------------------------------------------------

    def tokenize(self, texts: str | Sequence[str], *, max_tokens: int | None = None) -> Batch:
        """Ids and mask of texts, with the tokenizer's own special tokens, padded on the right, on the model's device.

        Raises:
            ValueError: a text that has no token.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self.pad(self.encode(texts, max_tokens=max_tokens))

    def encode(self, texts: Sequence[str], *, max_tokens: int | None = None) -> list[list[int]]:
        """Token ids of each text, unpadded, with the tokenizer's own special tokens."""
        return (
            [ids[:max_tokens] for ids in self.tokenizer(list(texts), padding=False, truncation=False)["input_ids"]]
            if texts
            else []
        )

    def pad(self, rows: Sequence[Sequence[int]], *, side: str = "right") -> Batch:
        """A batch of lists of token ids, on the model's device."""
        return pad(rows, self.pad_id, side=side).to(self.device)  # type: ignore[arg-type]

    @property
    def pad_id(self) -> int:
        """The id that fills padding; its value never matters, since it is always masked."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in ids if i is not None)

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
        """Activations at sites, in one pass that never runs the head and stops after the last site asked for.

        Args:
            batch: tokens, from `tokenize`.
            sites: names, see `elm_interp.models.sites`; a short name stands for `layers`.
            layers: 0-based blocks for short names, negative from the end; None means all.
            positions: which tokens of each row; only they are kept in memory.
            grad: keep the graph for back-propagation.

        Returns:
            A mapping; `cache["resid_post"]` is (batch, layer, d_model) for one position a row, and
            (batch, layer, pos, d_model) for "all" (left-aligned, zeros after a row's end) or several positions. A `z` has
            (head, d_head) for d_model; a `pattern` is read at query positions: (batch, layer, head, [pos,] key).

        Raises:
            UnknownSiteError: a site or layer that the model does not have.
            ValueError: a position outside some row.
        """
        wanted = resolve_sites(sites, layers, self.n_layers)
        batch = batch.to(self.device)

        def keep(site: Site, value: Tensor) -> Tensor:
            take = pick_pattern if site.name == "pattern" else pick
            return take(value, batch.attention_mask, positions)

        with torch.set_grad_enabled(grad):
            found, _ = self._backend.run(batch, wanted, keep)
        return ActivationCache({site: found[site] for site in wanted}, batch, positions)

    def logits(
        self, batch: Batch, *, positions: Positions = "last", grad: bool = False
    ) -> Float[Tensor, "batch *pos d_vocab"]:
        """Next-token logits at positions; the head runs on nothing else."""
        batch = batch.to(self.device)
        with torch.set_grad_enabled(grad):
            if self.is_remote:
                head = cast("RemoteBackend", self._backend).head
                return self._scaled(head(batch, lambda _, x: pick(x, batch.attention_mask, positions)))
            return self.unembed(pick(self.hidden(batch, grad=grad), batch.attention_mask, positions))

    def hidden(self, batch: Batch, *, grad: bool = False) -> Float[Tensor, "batch pos d_model"]:
        """Hidden states after the final norm, what the head reads, at every padded position."""
        with torch.set_grad_enabled(grad):
            return cast(Tensor, self._backend.run(batch.to(self.device))[1])

    def step(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch past_and_new"],
        position_ids: Int[Tensor, "batch new"],
        cache: Cache | None = None,
        *,
        grad: bool = False,
    ) -> tuple[Float[Tensor, "batch new d_model"], Cache]:
        """Run new tokens after those in a key-value cache; returns their hidden states (as `hidden`) and the longer cache.

        The mask covers the cached tokens and the new ones; positions are counted on each row's own real tokens.
        """
        with torch.set_grad_enabled(grad):
            return self._backend.step(input_ids, attention_mask, position_ids, cache)

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Logits of hidden states after the final norm."""
        return self._scaled(self.unembedding(hidden))

    def _scaled(self, logits: Tensor) -> Tensor:
        if self._logit_scale != 1:  # a pass over the vocabulary
            logits = logits * self._logit_scale
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)

    def unembed_gradient(
        self, grad: Float[Tensor, "*batch d_vocab"], logits: Float[Tensor, "*batch d_vocab"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The gradient at the hidden states that a gradient at their logits gives, through the frozen head."""
        if self._softcap is not None:
            grad = grad * (1 - (logits.float() / self._softcap) ** 2)
        return grad.to(self.unembedding.weight.dtype) @ (
            self.unembedding.weight * self._logit_scale if self._logit_scale != 1 else self.unembedding.weight
        )

    # -- editing --------------------------------------------------------------------------------------------------

    @contextmanager
    def hooks(self, edits: Mapping[str, Edit]) -> Iterator["HookedLM"]:
        """Replace activations in every pass of this object inside the context: reading, scoring, generation.

        Args:
            edits: site name to a function of the whole padded activation (shapes as in `sites`) that returns its
                replacement; a short name edits that site at every layer.

        Raises:
            UnknownSiteError: a site that the model does not have; nothing is hooked then.
        """
        by_site = {site: edit for name, edit in edits.items() for site in resolve_sites(name, None, self.n_layers)}
        with self._backend.hooks(by_site):
            yield self

    # -- adapters -------------------------------------------------------------------------------------------------

    @contextmanager
    def adapter(self, which: str | Path | None) -> Iterator["HookedLM"]:
        """Inside the context, run the bare base (None) or the adapter saved in a folder; restored after.

        Raises:
            AdapterError: the folder holds no adapter that fits and has an effect.
        """
        with self.adapters.use(which):
            yield self

    def lora(
        self,
        layers: Iterable[int],
        *,
        rank: int | None,
        alpha: float = 1.0,
        modules: str = "attn+mlp",
        dropout: float = 0.0,
    ) -> LoraConfig:
        """A LoRA of this model's own projections, for `adapters.attach`; with rank None their whole weights."""
        return lora_config(
            self.model, self.layout.blocks, list(layers), rank=rank, alpha=alpha, modules=modules, dropout=dropout
        )

    def reinitialised(self, seed: int = 1) -> "HookedLM":
        """A model of the same architecture and tokenizer whose weights were never trained: what structure alone gives.

        Raises:
            BackendError: the weights are not here, or spread over several devices.
        """
        if self.is_remote:
            raise BackendError("a remote model's weights are not here; load it without remote to initialise it anew.")
        if len({weight.device for weight in self.model.parameters()}) > 1:
            raise BackendError(
                "the model is spread over several devices; a second one would have to fit on one of them."
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone, which is given back
            model = type(self.model)._from_config(deepcopy(self.model.config), dtype=self.dtype)
        model.to(self.device)
        model.eval().requires_grad_(False)
        name = f"{self.name}, random weights"
        return HookedLM(model, self.tokenizer, name=name, layout=self.layout, backend=self.backend)

    # -- native objects --------------------------------------------------------------------------------------------

    def as_transformer_lens(self) -> "TransformerBridge":
        """TransformerLens's bridge of this model as it is now, for its own tools: patching, attribution, its caches.

        It has weights of its own, with the adapter that is on merged into them, so that whatever is done to it
        (`enable_compatibility_mode` too) leaves this model alone. Give it `batch.input_ids`: from text it makes tokens by
        its own rules.

        Raises:
            ImportError: the extra transformer-lens is not installed.
        """
        module = import_backend("transformer_lens")
        return module.keepable_bridge(self.adapters.merged(), self.tokenizer, self.name)

    def as_nnsight(self) -> "TransformersModel":
        """The wrapper of nnsight around this model as it is now, for traces of your own.

        It shares the weights, and keeps on what is on at this moment. Of a remote model it is the remote model.

        Raises:
            ImportError: the extra nnsight is not installed.
        """
        if self.is_remote:
            return cast("RemoteBackend", self._backend).native
        return import_backend("nnsight").keepable_wrapper(self.model, self.tokenizer)

    # -- checks ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _check_unembedding(self) -> None:
        batch = pad([[0, 1, 2]], 0).to(self.device)
        reference = TorchBackend(self.model, self.layout)
        last = Site(self.n_layers - 1, "resid_post")
        training = self.model.training
        self.model.eval()
        try:
            hidden = cast(Tensor, reference.run(batch)[1])
            stream = reference.run(batch, [last])[0][last]
            normed = self.model.get_submodule(self.layout.final_norm)(stream)
            ours = self.unembed(hidden)
            backbone = self.model.get_submodule(self.layout.backbone)
            theirs = self.model(**forward_inputs(backbone, batch), use_cache=False).logits
            through = self.hidden(batch)
        finally:
            self.model.train(training)
        if normed.shape != hidden.shape or not torch.allclose(normed.float(), hidden.float(), atol=1e-3, rtol=1e-2):
            raise LayoutError(
                f"{self.layout.final_norm} of {type(self.model).__name__} does not turn what leaves the last of {self.layout.blocks} into what the "
                "head reads; pass layout=Layout(...) with the paths of this model."
            )
        if not torch.allclose(ours.float(), theirs.float(), atol=1e-3, rtol=1e-2):
            gap = (ours - theirs).abs().max().item()
            raise LayoutError(
                f"{type(self.model).__name__} does something between {self.layout.final_norm} and its logits that elm_interp does not know "
                f"(they differ by {gap:.3g}); pass layout= if a part was found wrongly."
            )
        gap = float((through - hidden).float().norm() / hidden.float().norm())
        if gap > (1e-3 if self.dtype == torch.float32 else 0.05):
            raise BackendError(
                f'{type(self.model).__name__} gives other hidden states through the back end "{self._backend.name}" than by itself '
                f'(relative difference {gap:.2g}, expected rounding only); use backend="torch".'
            )
