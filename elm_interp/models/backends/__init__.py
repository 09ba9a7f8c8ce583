"""Back ends run the passes of a `HookedLM`; all give the same numbers. See `contract` for how to declare one."""

from elm_interp.models.backends.contract import Backend, Edit, Keep, backend
from elm_interp.models.backends.torch import TorchBackend

__all__ = ["Backend", "Edit", "Keep", "TorchBackend", "backend"]
