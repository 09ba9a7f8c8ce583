"""The errors that users see; unknown names come with the closest match.

Every class is a `ValueError`, so `except ValueError` catches every mistake in the user's input.
"""

import difflib
from collections.abc import Collection, Iterable


class UnknownNameError(ValueError):
    """A name that does not exist was asked for; the message lists what exists and the closest match."""


class UnknownSiteError(UnknownNameError):
    """A hook site or layer that the model does not have."""


class UnknownModelError(UnknownNameError):
    """A model name that is neither an alias, nor a folder, nor a hub id that could be loaded."""


class BackendError(ValueError):
    """A back end whose numbers would differ from the model's own."""


class LayoutError(ValueError):
    """The blocks of a model could not be found by structure."""


class AdapterError(ValueError):
    """An adapter that cannot act on the model: its keys match no module, or it has no effect."""


class DataError(ValueError):
    """Broken passages, questions or concept files; the message lists every problem with file and line."""


class ConfigError(ValueError):
    """Settings that cannot work; the message lists every problem."""


class RunFolderError(ValueError):
    """A run folder that exists already, is incomplete, or belongs to another configuration."""


class StoreError(ValueError):
    """An activation store that is damaged, or asked to combine activations that do not belong together."""


class NotFiniteError(ValueError):
    """NaN or infinite numbers where a result is made of them; the message says where, and which dtype helps."""


def closest(name: str, known: Iterable[str]) -> str:
    """A hint such as " Did you mean 'resid_post'?"; an empty string where no name is close."""
    near = difflib.get_close_matches(name.lower(), {k.lower(): k for k in known}, n=1, cutoff=0.5)
    by_lower = {k.lower(): k for k in known}
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""


def unknown(
    kind: str, name: str, known: Iterable[str], error: type[UnknownNameError] = UnknownNameError
) -> UnknownNameError:
    """The error for a name that does not exist: the name, the closest match, and every name that exists."""
    known = list(known)
    return error(f"unknown {kind} {name!r}.{closest(name, known)} Known: {', '.join(map(str, known)) or 'none'}.")


def check_known(kind: str, name: str, known: Collection[str], error: type[UnknownNameError] = UnknownNameError) -> None:
    """Raise the error of `unknown` for a name that is not among those that exist."""
    if name not in known:
        raise unknown(kind, name, known, error)


def not_finite(where: str, dtype: object = "") -> NotFiniteError:
    """The error for numbers that are NaN or infinite.

    Args:
        where: what is not finite, and where, such as "resid_post of text 3 at layer 7".
        dtype: of the model or tensor; it decides the advice.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "float16":
        advice = 'A float16 overflows above 65,504; load the model with dtype="bfloat16" or dtype="float32".'
    else:
        advice = 'The weights are broken, or a number overflows; check the adapter, and try dtype="float32".'
    return NotFiniteError(f"{where}: found NaN or infinity, expected finite numbers. {advice}")


def raise_all(problems: list[str], error: type[ValueError], head: str) -> None:
    """Raise one error that lists every problem; return if there is none."""
    if problems:
        listed = "\n".join(f"  - {p}" for p in problems)
        raise error(f"{head}\n{listed}")
