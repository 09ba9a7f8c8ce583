"""Memory of this process: its peak, and the return of freed memory to the system."""

import ctypes
import resource
import sys
from contextlib import suppress

import torch


def trim() -> None:
    """Return freed memory to the system; glibc would keep gigabytes of it after passes of many different shapes."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_gb() -> float:
    """Peak memory of this process so far, in GB: on the GPU if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
