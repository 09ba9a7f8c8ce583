"""Random labels: a probe takes what a scikit-learn classifier takes, with the same result, and refuses the rest."""

import warnings

import numpy as np
import pandas as pd
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from elm_interp.errors import DataError
from elm_interp.probes.inputs import as_groups, as_labels

N = 6
VALUES = st.sampled_from(
    [
        st.integers(-2, 3), st.booleans(), st.sampled_from(["a", "b", "\u00e9", "B", ""]),
        st.sampled_from([0.0, 1.0, 2.0]), st.floats(-2, 2), st.integers(0, 1).map(np.int8),
        st.sampled_from([1, 0, np.nan]), st.sampled_from(["a", "b", None]), st.floats(),
    ]
).flatmap(lambda one: st.lists(one, min_size=N, max_size=N))  # fmt: skip
FORMS = {
    "list": list,
    "tuple": tuple,
    "array": np.asarray,
    "column": lambda v: np.asarray(v)[:, None],
    "rows": lambda v: [[x] for x in v],
    "two columns": lambda v: np.stack([np.asarray(v)] * 2, 1),
    "series": lambda v: pd.Series(v, index=range(10, 10 + N)),
    "category": lambda v: pd.Series(v).astype("category"),
    "table": lambda v: pd.DataFrame({"y": v}),
    "one-hot": lambda v: pd.get_dummies(pd.Series(v)).to_numpy(),
}


def of_scikit_learn(labels):
    """The labels as 0, 1, …, as its classifiers see them; None where they refuse."""
    try:
        y = column_or_1d(labels)
        check_classification_targets(y)
        if pd.isna(y).any():
            return None
        KNeighborsClassifier(1).fit(np.zeros((N, 1)), y)
        return np.unique(y, return_inverse=True)[1].tolist()
    except (ValueError, TypeError):
        return None


@given(VALUES, st.sampled_from(list(FORMS)))
def test_labels_are_read_as_scikit_learn_reads_them(values, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            labels = FORMS[form](values)
        except (TypeError, ValueError):
            return  # numpy or pandas cannot hold them so
        expected = of_scikit_learn(labels)
        try:
            found = as_labels(labels)[0].tolist()
        except DataError:
            found = None
    if any(value is None or value != value for value in values) and form != "one-hot":
        assert found is None, "a missing label is never a class of its own"
    elif isinstance(labels, np.ndarray | pd.Series | pd.DataFrame) or expected is not None:
        assert found == expected


@given(
    st.lists(st.integers(0, 3), min_size=N, max_size=N),
    st.sampled_from(["int64", "int8", "bool", "float32", "bfloat16"]),
)
def test_tensors_of_any_dtype_are_read_as_their_numbers(values, dtype):
    found = as_labels(torch.tensor(values).to(getattr(torch, dtype)))[0].tolist()
    numbers = [bool(v) for v in values] if dtype == "bool" else values
    assert found == np.unique(numbers, return_inverse=True)[1].tolist()


GROUPS = st.integers(0, 2) | st.sampled_from(["a", "b"]) | st.tuples(st.integers(0, 1), st.sampled_from("ab"))


@given(st.lists(GROUPS, min_size=1, max_size=N))
def test_groups_are_the_same_exactly_where_their_texts_are(groups):
    names = as_groups(groups)
    assert [names[0] == name for name in names] == [str(groups[0]) == str(group) for group in groups]
