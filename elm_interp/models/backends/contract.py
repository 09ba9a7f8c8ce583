"""Back ends run the passes behind `HookedLM`. All of them give the same numbers.

    torch               forward hooks on the model itself: the default, and the reference for the others
    nnsight             traces of nnsight; also runs hub models on NDIF, for models too large for this machine
    transformer_lens    TransformerLens's bridge, with its hook points

The last two need an extra, which is imported when the back end is made. A back end of another distribution is a class:

    @backend("counted")
    class CountedBackend(TorchBackend):
        ...
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Protocol, TypeAlias, TypeVar, cast

from torch import Tensor, nn
from transformers import Cache
from transformers.utils import logging as transformers_logging

from elm_interp.errors import UnknownSiteError
from elm_interp.models.batch import Batch
from elm_interp.models.changed import changed
from elm_interp.models.layout import Layout
from elm_interp.models.sites import Site
from elm_interp.registry import BACKENDS

Edit: TypeAlias = Callable[[Tensor], Tensor | None]
"""Takes a site's activation and returns its replacement, or changes it in place and returns None."""
Keep: TypeAlias = Callable[[Tensor], Tensor]
"""Takes an activation as it is read and returns what to keep in memory."""


class Backend(Protocol):
    """Runs passes of one model, reads and edits its sites, and leaves the model as it was."""

    name: str
    """Under which the class was declared; set by `backend`."""

    def run(self, batch: Batch, reads: Mapping[Site, Keep] | None = None) -> tuple[dict[Site, Tensor], Tensor | None]:
        """Run one forward pass without the unembedding.

        Args:
            batch: tokens on the model's device.
            reads: the sites to read, and what to keep of each.

        Returns:
            What was kept at each site, and the hidden states after the final norm. If sites were asked for, the pass
            stops at the last of them, and the hidden states are None.
        """

    def step(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Run new tokens after cached ones, without the unembedding: their hidden states and the longer cache."""

    def hooks(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Edit activations in every pass inside the context."""


BackendClass = TypeVar("BackendClass", bound=type)


def backend(name: str) -> Callable[[BackendClass], BackendClass]:
    """Declare a back end: a class that takes a model and its layout, with the methods of `Backend`.

    Raises:
        ConfigError: the name is taken.
    """

    def declare(cls: BackendClass) -> BackendClass:
        cls.name = name  # type: ignore[attr-defined]
        BACKENDS.add(name, cls)
        return cls

    return declare


def make_backend(name: str, model: nn.Module, layout: Layout) -> Backend:
    """Make the back end of this name for a model.

    Raises:
        UnknownNameError: no such back end.
        ImportError: its library is not installed; the message names the extra.
    """
    return cast(Backend, BACKENDS[name](model, layout))


def import_extra(module: str) -> ModuleType:
    """Import a module of a back end's library.

    Raises:
        ImportError: it is not installed; the message names the extra that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        extra = module.partition(".")[0].replace("_", "-")
        raise ImportError(f'{module} cannot be imported ({error}); run: pip install "elm-interp[{extra}]"') from error


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the context, transformers reports errors alone; its verbosity is restored after."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


class Stop(Exception):
    """Raised in the last hook that a pass needs, so that later layers do not run."""


def read_sites(
    forward: Callable[[], Tensor],
    hook: Callable[[Site, Edit], AbstractContextManager[None]],
    reads: Mapping[Site, Keep] | None,
) -> tuple[dict[Site, Tensor], Tensor | None]:
    """Run a pass with a hook at each site that keeps what it sees; returns what `Backend.run` does."""
    reads = reads or {}
    found: dict[Site, Tensor] = {}

    def see(site: Site, value: Tensor) -> None:
        found[site] = reads[site](value)
        if len(found) == len(reads):
            raise Stop

    with ExitStack() as stack:
        for site in reads:
            stack.enter_context(hook(site, partial(see, site)))
        try:
            hidden = forward()
        except Stop:
            return found, None
    if missed := [site for site in reads if site not in found]:
        raise UnknownSiteError(f"this model has no site {missed[0]}: its passes never come by there.")
    return found, hidden


class KeptEdits:
    """The edits of all open `hooks` contexts, for back ends that set them in each pass."""

    edits: Sequence[tuple[Site, Edit]] = ()

    def hooks(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Edit activations in every pass inside the context."""
        return changed(self, edits=(*self.edits, *edits.items()))
