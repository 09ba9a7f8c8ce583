"""Many L2-regularised logistic regressions at once: every layer, and every labelling of it, in one call.

Each problem is the one that scikit-learn's `LogisticRegression(C=C)` solves (the intercept is free of the penalty):

    minimise  C · Σ_i loss(y_i, w·x_i + b) + ½ |w|²

Conjugate gradients, preconditioned with the largest curvature that the loss can have anywhere (Böhning's bound: 1/4 of the
Gram matrix for two classes, 1/2 for more). One factorisation then serves all labellings, classes and steps of an x, a step is
two products with small matrices, and a few tens do. It works in the smaller of two spaces: probes usually have fewer examples
than dimensions, and then w = Xᵀa and all that is needed of X is its Gram matrix.

Shapes: x is (batch, example, d_model); labels are (batch, example), or (batch, task, example) for several labellings of
the same x; weights are (batch, [task,] class, d_model), one class row for two classes, as in scikit-learn.

    weights = fit_probes(x, y, C=0.01)
    weights.predict(x)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_NUMBERS = 8_000_000
"""Numbers of the matrices alive at once: bounds memory."""
RIDGE = {torch.float32: 1e-6, torch.float64: 1e-9}
"""Added to the Gram matrix, as a share of its diagonal. Centred or repeated rows leave it singular, and what the objective
does not see would grow from rounding errors until it drowns the rest; the share is too small to move a probability."""
MAX_STEPS = 2000
TOLERANCE = 1e-9
"""Stop when the squared preconditioned gradient is below this share of the objective."""


@dataclass(frozen=True)
class ProbeWeights:
    """Fitted logistic regressions."""

    coef: Float[Tensor, "*problem class d_model"]
    intercept: Float[Tensor, "*problem class"]

    def scores(self, x: Float[Tensor, "batch example d_model"]) -> Float[Tensor, "*problem example class"]:
        """Logits of each class; with two classes one column, of the second against the first."""
        if self.coef.ndim == 3:
            return x.to(self.coef) @ self.coef.mT + self.intercept[..., None, :]
        together = x.to(self.coef) @ self.coef.flatten(1, 2).mT
        return together.unflatten(-1, self.coef.shape[1:3]).transpose(1, 2) + self.intercept[..., None, :]

    def predict(self, x: Float[Tensor, "batch example d_model"]) -> Int[Tensor, "*problem example"]:
        """The likeliest class."""
        scores = self.scores(x)
        return (scores[..., 0] > 0).long() if scores.shape[-1] == 1 else scores.argmax(-1)

    def log_probabilities(self, x: Float[Tensor, "batch example d_model"]) -> Float[Tensor, "*problem example class"]:
        """The log-probability of each class, in nats."""
        scores = self.scores(x)
        if scores.shape[-1] == 1:
            return torch.nn.functional.logsigmoid(torch.cat([-scores, scores], -1))
        return scores.log_softmax(-1)


@torch.no_grad()
def fit_probes(
    x: Float[Tensor, "batch example d_model"],
    y: Int[Tensor, "batch *task example"],
    C: float,
    *,
    classes: int | None = None,
) -> ProbeWeights:
    """Fit logistic regressions, one for each entry of the batch and each labelling of it.

    Args:
        x: features; products are made in their type (float64 for C >= 1), sums in float64.
        y: labels 0 .. classes - 1.
        C: inverse strength of the penalty, as in scikit-learn.
        classes: how many; None takes the largest label plus one.

    Returns:
        Weights in float64.

    Raises:
        ValueError: shapes that do not fit, C not positive, values that are not finite, or labels of one class alone.
    """
    classes = max(int(y.max()) + 1, 2) if classes is None and y.numel() else classes or 2
    _check(x, y, C, classes)
    tasks = y if y.ndim == 3 else y[:, None]
    batch, n, d = x.shape
    outputs = 1 if classes == 2 else classes
    if C >= 1 or x.dtype not in (torch.float32, torch.float64):
        x = x.double()  # a weak penalty leaves the curvature ill-conditioned, and float32 short of digits
    per_chunk = max(1, CHUNK_NUMBERS // (2 * min(n, d) ** 2 + n * d))
    found = [_fit(x[i : i + per_chunk], tasks[i : i + per_chunk], C, outputs) for i in range(0, batch, per_chunk)]
    coef, intercept = torch.cat([w for w, _ in found]), torch.cat([b for _, b in found])
    return ProbeWeights(coef, intercept) if y.ndim == 3 else ProbeWeights(coef[:, 0], intercept[:, 0])


def objective(
    weights: ProbeWeights, x: Float[Tensor, "batch example d_model"], y: Int[Tensor, "batch *task example"], C: float
) -> Float[Tensor, "batch *task"]:
    """What `fit_probes` minimises, at given weights."""
    right = weights.log_probabilities(x).gather(-1, y[..., None])[..., 0]
    return -C * right.sum(-1) + 0.5 * weights.coef.square().sum((-1, -2))


def _check(x: Tensor, y: Tensor, C: float, classes: int) -> None:
    if x.ndim != 3 or y.ndim not in (2, 3) or y.shape[0] != x.shape[0] or y.shape[-1] != x.shape[1] or not x.numel():
        raise ValueError(
            "x must be (batch, example, d_model) and y (batch, example) or (batch, task, example), none empty; "
            f"found {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if not C > 0:
        raise ValueError(f"C is {C}, expected a positive number.")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(f"labels are {int(y.min())} to {int(y.max())}, expected 0 to {classes - 1}.")
    if not bool(x.isfinite().all()):
        raise ValueError("x holds values that are not finite.")
    if bool((y.amax(-1) == y.amin(-1)).any()):
        raise ValueError("the examples of some problem are all of one class; a probe needs two.")


def _fit(x: Tensor, y: Int[Tensor, "batch task n"], C: float, outputs: int) -> tuple[Tensor, Tensor]:
    # with centred features the bound on the curvature does not couple weights and intercept
    centre = x.mean(1, keepdim=True)
    space = (_Dual if x.shape[1] <= x.shape[2] else _Primal)(x - centre, C / 4 if outputs == 1 else C / 2)
    one_hot = y[:, :, None] if outputs == 1 else torch.nn.functional.one_hot(y, outputs).mT
    theta, bias = _minimise(space, one_hot.double(), C)
    coef = space.coef(theta)
    return coef, bias - (coef @ centre[:, :, :, None].double())[..., 0]


class _Dual:
    """Where theta is a, (batch, task, class, n), with w = Xᵀa; the inner product of two weights is aᵀ K a'."""

    def __init__(self, x: Tensor, curvature: float) -> None:
        self.x, self.gram = x, x @ x.mT
        diagonal = self.gram.diagonal(dim1=-2, dim2=-1)
        diagonal += RIDGE[x.dtype] * diagonal.mean(-1, keepdim=True)
        self.inverse = _inverse_of_one_plus(curvature * self.gram)

    def zero(self, target: Tensor) -> Tensor:
        return torch.zeros_like(target)

    def linear(self, theta: Tensor) -> Tensor:
        return _product(theta, self.gram)

    def gradient(self, theta: Tensor, residual: Tensor) -> Tensor:
        """Of loss and penalty, as theta; `residual` is minus the loss's derivative by the latent."""
        return theta - residual

    def precondition(self, gradient: Tensor) -> Tensor:
        return _product(gradient, self.inverse)

    def inner(self, left: Tensor, right: Tensor, right_linear: Tensor) -> Tensor:
        return (left * right_linear).sum((-1, -2))

    def coef(self, theta: Tensor) -> Tensor:
        return _product(theta, self.x)


class _Primal:
    """Where theta is w, (batch, task, class, d_model): for more examples than dimensions."""

    def __init__(self, x: Tensor, curvature: float) -> None:
        self.x = x
        self.inverse = _inverse_of_one_plus(curvature * (x.mT @ x))

    def zero(self, target: Tensor) -> Tensor:
        return target.new_zeros(*target.shape[:-1], self.x.shape[-1])

    def linear(self, theta: Tensor) -> Tensor:
        return _product(theta, self.x.mT)

    def gradient(self, theta: Tensor, residual: Tensor) -> Tensor:
        return theta - _product(residual, self.x)

    def precondition(self, gradient: Tensor) -> Tensor:
        return _product(gradient, self.inverse)

    def inner(self, left: Tensor, right: Tensor, right_linear: Tensor) -> Tensor:
        return (left * right).sum((-1, -2))

    def coef(self, theta: Tensor) -> Tensor:
        return theta


def _product(values: Float[Tensor, "batch task class i"], matrix: Float[Tensor, "batch i j"]) -> Tensor:
    # all tasks and classes in one product: broadcasting would copy the matrix for each
    return (values.flatten(1, 2).to(matrix.dtype) @ matrix).unflatten(1, values.shape[1:3]).double()


def _inverse_of_one_plus(matrix: Float[Tensor, "batch i i"]) -> Tensor:
    matrix.diagonal(dim1=-2, dim2=-1).add_(1)
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def _loss(latent: Tensor, target: Tensor) -> Float[Tensor, "batch task"]:
    one = latent.shape[2] == 1
    norm = torch.nn.functional.softplus(latent[:, :, 0]) if one else latent.logsumexp(2)
    return (norm - (latent * target).sum(2)).sum(-1)


def _curvature(probs: Tensor, change: Tensor) -> Float[Tensor, "batch task"]:
    """Second derivative of the loss along a change of the latent."""
    first = (probs * change).sum(2, keepdim=True)
    return (probs * (change - first) * change).sum((-1, -2))


def _minimise(space: _Dual | _Primal, target: Float[Tensor, "batch task class n"], C: float) -> tuple[Tensor, Tensor]:
    """Preconditioned nonlinear conjugate gradients (Polak-Ribière), all problems in step.

    The step length is Newton's along the direction; where that overshoots, the one that the bound makes safe.
    """
    one, n = target.shape[2] == 1, target.shape[-1]
    bound = C / 4 if one else C / 2
    theta, latent = space.zero(target), torch.zeros_like(target)
    bias, value = target.new_zeros(target.shape[:-1]), C * _loss(latent, target)
    norm = torch.zeros_like(value)
    way, way_linear, way_bias = torch.zeros_like(theta), torch.zeros_like(target), torch.zeros_like(bias)
    old, old_bias, old_size = torch.zeros_like(theta), torch.zeros_like(bias), torch.ones_like(value)
    still = 0
    for _ in range(MAX_STEPS):
        probs = latent.sigmoid() if one else latent.softmax(2)
        residual = C * (target - probs)
        slope, slope_bias = space.gradient(theta, residual), -residual.sum(-1)
        ahead, ahead_bias = space.precondition(slope), slope_bias / (bound * n)
        ahead_linear = space.linear(ahead)
        size = space.inner(slope, ahead, ahead_linear) + (slope_bias * ahead_bias).sum(-1)
        active = size > TOLERANCE * value
        if still >= 2 or not bool(active.any()):
            break
        before = space.inner(old, ahead, ahead_linear) + (old_bias * ahead_bias).sum(-1)
        keep = ((size - before) / old_size).clamp(min=0).nan_to_num(0, 0, 0)
        way = _times(keep, way) - ahead
        way_linear, way_bias = _times(keep, way_linear) - ahead_linear, _times(keep, way_bias) - ahead_bias
        old, old_bias, old_size = slope, slope_bias, size

        change = way_linear + way_bias[..., None]
        descent = -space.inner(slope, way, way_linear) - (slope_bias * way_bias).sum(-1)
        along, length = space.inner(theta, way, way_linear), space.inner(way, way, way_linear)
        step = _ratio(descent, C * _curvature(probs, change) + length)
        trial = _value(latent, change, target, C, norm, along, length, step)
        if bool((trial > value).any()):
            safe = _ratio(descent, bound * change.square().sum((-1, -2)) + length)
            step = torch.where(trial > value, safe, step)
            trial = _value(latent, change, target, C, norm, along, length, step)
        # what has converged stands still, since it would only walk about in its own rounding errors
        go = active & (trial <= value)
        still = 0 if bool(go.any()) else still + 1
        step = torch.where(go, step, 0)
        theta, latent, bias = theta + _times(step, way), latent + _times(step, change), bias + _times(step, way_bias)
        norm, value = norm + 2 * step * along + step**2 * length, torch.where(go, trial, value)
    return theta, bias


def _times(factor: Float[Tensor, "batch task"], values: Float[Tensor, "batch task *rest"]) -> Tensor:
    return factor.reshape(*factor.shape, *[1] * (values.ndim - 2)) * values


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    # a problem that is solved to the last digit has no direction left: it stands still
    return (above / below).nan_to_num(0, 0, 0)


def _value(
    latent: Tensor,
    change: Tensor,
    target: Tensor,
    C: float,
    norm: Tensor,
    along: Tensor,
    length: Tensor,
    step: Tensor,
) -> Float[Tensor, "batch task"]:
    """The objective after a step; `norm` is |w|² before it."""
    return C * _loss(latent + _times(step, change), target) + 0.5 * (norm + 2 * step * along + step**2 * length)
