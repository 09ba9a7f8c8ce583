"""Memory of this process: how much it held at most, and handing back what it holds no more."""

import ctypes
import resource
import sys
from contextlib import suppress

import torch


def trim() -> None:
    """Hand freed memory back to the system: glibc keeps buffers of many sizes apart, gigabytes of them after some passes."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_gb() -> float:
    """Largest memory of this process so far, in GB: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
