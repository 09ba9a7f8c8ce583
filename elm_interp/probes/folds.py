"""Logistic regressions on many parts of the same rows at once: folds, seeds and shuffled labels of every layer.

Each problem has its own rows and its own scaling, as `StandardScaler` and `LogisticRegression` would have on them, but x is read
once for all: problems are columns of one product with x. With fewer examples than dimensions they share one Gram matrix as well.
Scaled by all rows, it differs from each problem's own by a percent or so; what it misses is put right by a product with x itself,
two, as a rule, so that the answer is that of the problem's own scaling.

Shapes: x is (batch, example, d_model); labels and rows are (problem, example).

    weights = fit_splits(x, y, rows, C=0.01, classes=2)     # (batch, problem, class, d_model), in the units of x
    right = weights.predict(x) == y                         # of the rows that each was fitted to, and of those that it never saw
"""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from elm_interp.probes.logistic import Examples, ProbeWeights, check, digits, inverse_of_one_plus, minimise, product

CACHE_NUMBERS = 2_000_000
"""Numbers of the matrices at work: more would not stay in a processor's cache from step to step."""
TOLERANCE = 1e-3
"""About half of it is missing of the objective at most: 0.05 %, near what scikit-learn misses by default."""
SHORTENED = 0.05
"""Of the tolerance, where a preconditioner makes gradients shorter than what they stand for."""
NEAR = 2.0
"""How much larger the variance of a feature may be over all rows than over a part, to share a Gram matrix."""
CORRECTIONS = 8
AHEAD = 0.3
"""Of the tolerance, for what is then held against it with the problem's own scaling."""


@torch.no_grad()
def fit_splits(
    x: Float[Tensor, "batch example d_model"],
    y: Int[Tensor, "problem example"],
    rows: Bool[Tensor, "problem example"],
    C: float,
    *,
    classes: int,
    tolerance: float = TOLERANCE,
) -> ProbeWeights:
    """Fit a logistic regression to each part of the rows, on features standardised on that part, for each entry of the batch.

    Args:
        x: features, not scaled; computed with in their type (float64 for C >= 1).
        y: labels 0 .. classes - 1; those outside a problem's rows do not matter.
        rows: which examples each problem is fitted to.
        C: inverse strength of the penalty. A feature that does not vary over the rows has weight 0.
        classes: how many.
        tolerance: squared gradient, as a share of the objective, to stop at.

    Returns:
        Weights for x as it is given, (batch, problem, class, d_model).

    Raises:
        ValueError: shapes that do not fit, C not positive, values that are not finite, or rows of one class alone.
    """
    if x.ndim != 3 or y.ndim != 2 or y.shape != rows.shape or y.shape[1] != x.shape[1] or not x.numel() * y.numel():
        raise ValueError(
            "x must be (batch, example, d_model), y and rows (problem, example), none empty; "
            f"found {tuple(x.shape)}, {tuple(y.shape)} and {tuple(rows.shape)}."
        )
    check(x, y, C, classes, rows)
    x, (n, d) = digits(x, C), x.shape[1:]
    share = rows.to(x) / rows.sum(-1, keepdim=True)
    few = torch.finfo(x.dtype).eps
    coefs, intercepts = [], []
    for part in x.split(max(1, CACHE_NUMBERS // (n * d + min(n, d) ** 2))):
        centre = part.mean(1, keepdim=True)
        z = (part - centre).contiguous()
        spread = z.square().mean(1, keepdim=True).sqrt()
        # a constant leaves rounding errors of its mean, which must not be blown up to a feature
        spread = torch.where(spread > 10 * few * centre.abs(), spread, torch.inf)
        z /= spread
        squares = share @ z.square()
        variance = squares - (share @ z).square()
        scale = torch.where(variance > 100 * few * squares, variance.rsqrt(), 0)[:, :, None]
        coef, bias = _fit(z, y, rows, scale, C, 1 if classes == 2 else classes, tolerance)
        coef /= spread[:, None]
        coefs.append(coef)
        intercepts.append(bias - (coef.double() @ centre.mT[:, None].double())[..., 0].to(bias))
    return ProbeWeights(torch.cat(coefs), torch.cat(intercepts))


def _fit(
    z: Float[Tensor, "batch n d_model"],
    y: Int[Tensor, "problem n"],
    rows: Bool[Tensor, "problem n"],
    scale: Float[Tensor, "batch problem 1 d_model"],
    C: float,
    outputs: int,
    tolerance: float,
) -> tuple[Float[Tensor, "batch problem class d_model"], Float[Tensor, "batch problem class"]]:
    """Weights on z for problems that each scale it further; nothing needs centring, since the bias is free."""
    one_hot = y[:, None] if outputs == 1 else torch.nn.functional.one_hot(y, outputs).mT
    target, strength = one_hot.to(z).expand(len(z), -1, -1, -1), C * rows[None, :, None].to(z)
    if z.shape[1] > z.shape[2]:
        weights = _Weights(z, scale, float(strength.mean()) / (4 if outputs == 1 else 2))
        theta, bias, _ = minimise(weights, target, strength, tolerance=SHORTENED * tolerance)
        return theta * scale, bias
    own = _Own(z, scale)
    if float(scale.amax()) ** 2 <= NEAR:
        shared = _Shared(z)
        a, bias, _ = minimise(shared, target, strength, tolerance=AHEAD * tolerance)
        for _ in range(CORRECTIONS):
            start = (a, bias, own.linear(a) + bias[..., None])
            a, bias, enough = minimise(shared, target, strength, start, tolerance=AHEAD * tolerance, begin=tolerance)
            if enough:
                return own.coef(a), bias
    a, bias, _ = minimise(own, target, strength, tolerance=tolerance)
    return own.coef(a), bias


class _Own(Examples):
    """With the scaling of each problem, by products with x."""

    def __init__(self, x: Tensor, scale: Tensor) -> None:
        self.x, self.width = x, scale.square()

    def linear(self, theta: Tensor) -> Tensor:
        return product(self.coef(theta), self.x.mT)

    def coef(self, theta: Tensor) -> Tensor:
        """Weights on x, without the scaling."""
        return product(theta, self.x) * self.width


class _Shared(Examples):
    """With the Gram matrix of all rows, as if all problems scaled alike."""

    def __init__(self, x: Tensor) -> None:
        self.gram = gram(x)

    def linear(self, theta: Tensor) -> Tensor:
        return product(theta, self.gram)


class _Weights:
    """Where theta is w on scaled x, (batch, problem, class, d_model): for more examples than dimensions."""

    def __init__(self, x: Tensor, scale: Tensor, curvature: float) -> None:
        self.x, self.scale = x, scale
        self.inverse = inverse_of_one_plus(curvature * (x.mT @ x))

    def zero(self, target: Tensor) -> Tensor:
        return target.new_zeros(*target.shape[:-1], self.x.shape[-1])

    def linear(self, theta: Tensor) -> Tensor:
        return product(theta * self.scale, self.x.mT)

    def gradient(self, theta: Tensor, residual: Tensor) -> Tensor:
        return theta - product(residual, self.x) * self.scale

    def precondition(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        ahead = product(gradient, self.inverse)
        return ahead, self.linear(ahead)

    def inner(self, left: Tensor, right: Tensor, right_linear: Tensor) -> Tensor:
        return (left * right).sum((-1, -2))


def gram(x: Float[Tensor, "batch i d_model"], parts: int = 4) -> Float[Tensor, "batch i i"]:
    """All inner products of the examples; the upper half is the lower half."""
    found = x.new_empty(len(x), x.shape[1], x.shape[1])
    for low, high in pairwise(i * x.shape[1] // parts for i in range(parts + 1)):
        found[:, low:high, :high] = x[:, low:high] @ x[:, :high].mT
        found[:, :low, low:high] = found[:, low:high, :low].mT
    return found
