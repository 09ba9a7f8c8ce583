"""What probes are given, in any form that scikit-learn takes: features, labels and groups.

Labels are lists, tuples, arrays, tensors, a Series, a table or an array of one column; numbers, names or booleans. What
scikit-learn's classifiers refuse is refused here too: continuous numbers, one-hot rows, several labels an example.

    x = as_activations(numbers, groups)          # (example, layer, d_model), checked
    y, classes = as_labels(["a", "b", "a"])      # 0, 1, 0 and 2
    names = as_groups([("town", 1), ("town", 2)])
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.utils.multiclass import type_of_target
from torch import Tensor

from elm_interp.errors import DataError, not_finite

CLASSES = ("binary", "multiclass")
"""Kinds of labels that a classifier can learn, in scikit-learn's words."""


def plain(values: Any) -> Any:
    """A tensor as a numpy array, which has no bfloat16; anything else as it is."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()


def as_activations(values: Any, what: str = "activations") -> Float[Tensor, "example layer d_model"]:
    """Activations as a tensor of finite floating-point numbers.

    Raises:
        DataError: not (example, layer, d_model), or not numbers.
        NotFiniteError: NaN or infinite values; the message names example and layer.
    """
    try:
        found = values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are not an array of numbers ({error}); expected (example, layer, d_model).") from error
    if found.ndim != 3:
        raise DataError(f"{what} have shape {tuple(found.shape)}; expected (example, layer, d_model).")
    found = found.detach() if found.is_floating_point() else found.float()
    broken = ~found.isfinite().all(-1)
    if bool(broken.any()):
        layer, example = broken.T.nonzero()[0].tolist()
        raise not_finite(f"{what} of example {example} at layer {layer}", found.dtype)
    return found


def as_labels(labels: Any) -> tuple[Int[Tensor, " example"], int]:
    """Labels of any kind as 0, 1, …, and how many classes there are (at least 2).

    Raises:
        DataError: a missing label, or labels that scikit-learn's classifiers refuse.
    """
    found = _column(labels, "labels")
    # numpy makes the text "nan" of a missing number among texts
    told = labels if isinstance(labels, list | tuple) else found
    missing = [i for i, label in enumerate(told) if _absent(label)]
    if len(missing):
        raise DataError(
            f"example {missing[0]} has no label ({len(missing)} of {len(found)} have none); leave them out."
        )
    if found.dtype == object:  # numbers or booleans that a table kept as objects
        found = _inferred(found)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # many classes are told by the probes: too few facts
            kind = type_of_target(found, input_name="labels") if len(found) else "binary"
    except (TypeError, ValueError) as error:
        raise DataError(f"the labels cannot be classes: {error}") from error
    if kind not in CLASSES or found.dtype.kind == "c":
        raise DataError(
            f"the labels are {kind}, expected a class for each example, such as names, whole numbers or booleans; "
            "cut continuous numbers into classes (values > threshold)."
        )
    names, codes = np.unique(found, return_inverse=True)
    return torch.from_numpy(codes), max(len(names), 2)


def as_groups(groups: Any) -> list[str]:
    """A name for the group of each example; a tuple is one group, not several.

    Raises:
        DataError: an example without a group, or several columns.
    """
    if isinstance(groups, pd.DataFrame | pd.Series | Tensor | np.ndarray):
        found = _column(groups, "groups").tolist()
    else:
        found = [item.item() if isinstance(item, Tensor) and item.ndim == 0 else item for item in groups]
    missing = [i for i, item in enumerate(found) if _absent(item)]
    if missing:
        raise DataError(f"example {missing[0]} has no group ({len(missing)} of {len(found)} have none).")
    return list(map(str, found))


def check_lengths(activations: Tensor, labels: Sequence[Any], groups: Sequence[Any]) -> None:
    """Check that there is a label and a group for each example.

    Raises:
        DataError: numbers that do not match.
    """
    if not len(activations) == len(labels) == len(groups):
        raise DataError(
            f"found activations of shape {tuple(activations.shape)}, {len(labels)} labels and {len(groups)} groups; "
            "expected (example, layer, d_model), and a label and a group for each example."
        )


def _column(values: Any, what: str) -> np.ndarray:
    """One value for each example, as an array of one axis; a table or array of one column is that column."""
    try:
        found = np.asarray(plain(values))
    except (TypeError, ValueError) as error:
        raise DataError(f"the {what} cannot be read ({error}); expected one for each example.") from error
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise DataError(
            f"the {what} have shape {found.shape}, expected one for each example; of one-hot rows take argmax(1)."
        )
    return found


def _absent(value: Any) -> bool:
    return (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float | np.floating) and value != value)
    )


def _inferred(found: np.ndarray) -> np.ndarray:
    return np.asarray(pd.Series(list(found), dtype=object).infer_objects().to_numpy())
