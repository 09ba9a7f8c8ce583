"""Attributes that have other values for a while: settings of a config, the edits of a context."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def changed(thing: Any, **attributes: Any) -> Iterator[None]:
    """Inside the context, attributes of a thing have these values; restored after, also on error."""
    before = {name: getattr(thing, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(thing, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)
