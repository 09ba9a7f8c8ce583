"""Back ends: what stands behind `HookedLM` and runs the passes. All give the same numbers.

    torch               forward hooks on the model itself: the default, and what the others are tested against
    nnsight             traces of nnsight; also runs hub models on NDIF, where nobody here could hold them
    transformer_lens    TransformerLens's bridge, with its hook points

The last two are extras, imported when first asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Protocol

from torch import Tensor, nn
from transformers import Cache

from elm_interp.errors import unknown
from elm_interp.models.batch import Batch
from elm_interp.models.sites import Layout, Site

Edit = Callable[[Tensor], Tensor | None]
"""Takes a site's activation and returns its replacement; None leaves it as it is (so an in-place change also works)."""
Keep = Callable[[Site, Tensor], Tensor]
"""What to keep of an activation as it is read, so that only what is asked for stays in memory."""

BACKENDS = {"torch": "TorchBackend", "nnsight": "NNsightBackend", "transformer_lens": "TransformerLensBackend"}
"""Name -> class, in the module of that name."""


class Backend(Protocol):
    """Runs passes of one model, reads and edits its sites, and leaves the model as it was."""

    name: str

    def run(
        self, batch: Batch, sites: Sequence[Site] = (), keep: Keep | None = None
    ) -> tuple[dict[Site, Tensor], Tensor | None]:
        """One forward pass without the head.

        Args:
            batch: tokens on the model's device.
            sites: what to read.
            keep: what to keep of each.

        Returns:
            The activations, and the hidden states after the final norm; None in their place when sites were asked
            for, since the pass then stops at the last of them.
        """

    def step(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """New tokens after cached ones, without the head: their hidden states and the longer cache."""

    def hooks(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Edit activations in every pass inside the context."""


def make_backend(name: str, model: nn.Module, layout: Layout) -> Backend:
    """The back end of this name on a model; errors as `import_backend`."""
    return getattr(import_backend(name), BACKENDS[name])(model, layout)


def import_backend(name: str) -> ModuleType:
    """The module of a back end.

    Raises:
        UnknownNameError: no such back end.
        ImportError: its library is not installed; the message names the extra.
    """
    if name not in BACKENDS:
        raise unknown("back end", name, BACKENDS)
    try:
        return import_module(f"elm_interp.models.backends.{name}")
    except ImportError as error:
        extra = name.replace("_", "-")
        raise ImportError(
            f'backend="{name}" could not be imported ({error}); run: pip install "elm-interp[{extra}]"'
        ) from error


class Stop(Exception):
    """Raised by the last hook that is needed, so that later layers never run."""


def read_sites(
    forward: Callable[[], Tensor],
    hook: Callable[[Site, Edit], AbstractContextManager[None]],
    sites: Sequence[Site],
    keep: Keep | None,
) -> tuple[dict[Site, Tensor], Tensor | None]:
    """Run a pass with a hook at each site that keeps what it sees; what `Backend.run` returns."""
    found: dict[Site, Tensor] = {}

    def read(site: Site) -> Edit:
        def see(value: Tensor) -> None:
            found[site] = keep(site, value) if keep else value
            if len(found) == len(sites):
                raise Stop

        return see

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(hook(site, read(site)))
        try:
            hidden = forward()
        except Stop:
            hidden = None
    return found, hidden


def by_head(edit: Edit, n_heads: int) -> Edit:
    """An edit of (batch, pos, head, d_head) as one of (batch, pos, head * d_head)."""

    def edited(value: Tensor) -> Tensor | None:
        new = edit(value.unflatten(-1, (n_heads, -1)))
        return None if new is None else new.flatten(-2)

    return edited


class KeptEdits:
    """The edits of the `hooks` contexts that are open, for back ends that set them anew in each pass."""

    def __init__(self) -> None:
        self.edits: list[tuple[Site, Edit]] = []

    @contextmanager
    def hooks(self, edits: Mapping[Site, Edit]) -> Iterator[None]:
        """Edit activations in every pass inside the context."""
        before = self.edits
        self.edits = [*before, *edits.items()]
        try:
            yield
        finally:
            self.edits = before
