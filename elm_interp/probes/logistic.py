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

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
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
    if x.ndim != 3 or y.ndim not in (2, 3) or y.shape[0] != x.shape[0] or y.shape[-1] != x.shape[1] or not x.numel():
        raise ValueError(
            "x must be (batch, example, d_model) and y (batch, example) or (batch, task, example), none empty; "
            f"found {tuple(x.shape)} and {tuple(y.shape)}."
        )
    check(x, y, C, classes, torch.ones_like(y, dtype=torch.bool))
    tasks = y if y.ndim == 3 else y[:, None]
    batch, n, d = x.shape
    outputs = 1 if classes == 2 else classes
    x = digits(x, C)
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


def check(
    x: Tensor, y: Int[Tensor, "*problem example"], C: float, classes: int, rows: Bool[Tensor, "*problem example"]
) -> None:
    """Raise ValueError where no regression on these rows is possible."""
    if not C > 0:
        raise ValueError(f"C is {C}, expected a positive number.")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(f"labels are {int(y.min())} to {int(y.max())}, expected 0 to {classes - 1}.")
    if not bool(x.isfinite().all()):
        raise ValueError("x holds values that are not finite.")
    if bool((torch.where(rows, y, -1).amax(-1) <= torch.where(rows, y, classes).amin(-1)).any()):
        raise ValueError("the examples of some problem are all of one class; a probe needs two.")


def digits(x: Tensor, C: float) -> Tensor:
    """Features in the type to compute in: a weak penalty leaves the curvature ill-conditioned, and float32 short of digits."""
    return x.double() if C >= 1 or x.dtype not in RIDGE else x


def _fit(x: Tensor, y: Int[Tensor, "batch task n"], C: float, outputs: int) -> tuple[Tensor, Tensor]:
    # with centred features the bound on the curvature does not couple weights and intercept
    centre = x.mean(1, keepdim=True)
    space = (_Dual if x.shape[1] <= x.shape[2] else _Primal)(x - centre, C / 4 if outputs == 1 else C / 2)
    one_hot = y[:, :, None] if outputs == 1 else torch.nn.functional.one_hot(y, outputs).mT
    strength = torch.full_like(y[:1, :, None], C, dtype=torch.float64)
    theta, bias, _ = minimise(space, one_hot.double(), strength)
    coef = space.coef(theta)
    return coef, bias - (coef @ centre[:, :, :, None].double())[..., 0]


class Space(Protocol):
    """Where theta lives, and how it makes weights."""

    def zero(self, target: Tensor) -> Tensor:
        """Theta of no weights."""

    def linear(self, theta: Tensor) -> Tensor:
        """Latents of the examples, without a bias."""

    def gradient(self, theta: Tensor, residual: Tensor) -> Tensor:
        """Of loss and penalty, as theta; `residual` is minus the loss's derivative by the latent."""

    def precondition(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The preconditioned gradient and its latents."""

    def inner(self, left: Tensor, right: Tensor, right_linear: Tensor) -> Tensor:
        """Inner product of the weights, (batch, task); `right_linear` are the latents of the second."""


class Examples(ABC):
    """Where theta is a, (batch, task, class, n), with w = Xᵀa; the inner product of two weights is aᵀ K a'."""

    @abstractmethod
    def linear(self, theta: Tensor) -> Tensor:
        """Latents of the examples, K a."""

    def zero(self, target: Tensor) -> Tensor:
        """Theta of no weights."""
        return torch.zeros_like(target)

    def gradient(self, theta: Tensor, residual: Tensor) -> Tensor:
        """Of loss and penalty, as theta."""
        return theta - residual

    def precondition(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Not at all, where what a factorisation of K costs pays for all the steps that it would save."""
        return gradient, self.linear(gradient)

    def inner(self, left: Tensor, right: Tensor, right_linear: Tensor) -> Tensor:
        """Inner product of the weights."""
        return (left * right_linear).sum((-1, -2))


class _Dual(Examples):
    """With the Gram matrix and a preconditioner."""

    def __init__(self, x: Tensor, curvature: float) -> None:
        self.x, self.gram = x, x @ x.mT
        diagonal = self.gram.diagonal(dim1=-2, dim2=-1)
        diagonal += RIDGE[x.dtype] * diagonal.mean(-1, keepdim=True)
        self.inverse = inverse_of_one_plus(curvature * self.gram)

    def linear(self, theta: Tensor) -> Tensor:
        return product(theta, self.gram)

    def precondition(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        ahead = product(gradient, self.inverse)
        return ahead, self.linear(ahead)

    def coef(self, theta: Tensor) -> Tensor:
        return product(theta, self.x)


class _Primal:
    """Where theta is w, (batch, task, class, d_model): for more examples than dimensions."""

    def __init__(self, x: Tensor, curvature: float) -> None:
        self.x = x
        self.inverse = inverse_of_one_plus(curvature * (x.mT @ x))

    def zero(self, target: Tensor) -> Tensor:
        return target.new_zeros(*target.shape[:-1], self.x.shape[-1])

    def linear(self, theta: Tensor) -> Tensor:
        return product(theta, self.x.mT)

    def gradient(self, theta: Tensor, residual: Tensor) -> Tensor:
        return theta - product(residual, self.x)

    def precondition(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        ahead = product(gradient, self.inverse)
        return ahead, self.linear(ahead)

    def inner(self, left: Tensor, right: Tensor, right_linear: Tensor) -> Tensor:
        return (left * right).sum((-1, -2))

    def coef(self, theta: Tensor) -> Tensor:
        return theta


def product(values: Float[Tensor, "batch task class i"], matrix: Float[Tensor, "batch i j"]) -> Tensor:
    """Of all tasks and classes with one matrix, in its type; broadcasting would copy the matrix for each."""
    # the rows of several classes sum to zero, so that one is had from the others
    rows = values if values.shape[2] == 1 else values[:, :, :-1]
    found = (rows.flatten(1, 2).to(matrix.dtype) @ matrix).unflatten(1, rows.shape[1:3]).to(values.dtype)
    return found if rows is values else torch.cat([found, -found.sum(2, keepdim=True)], 2)


def inverse_of_one_plus(matrix: Float[Tensor, "batch i i"]) -> Tensor:
    """(1 + matrix)⁻¹ of positive matrices, which are overwritten."""
    matrix.diagonal(dim1=-2, dim2=-1).add_(1)
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def minimise(
    space: Space,
    target: Float[Tensor, "batch task class n"],
    strength: Float[Tensor, "#batch task 1 n"],
    start: tuple[Tensor, Tensor, Tensor] | None = None,
    *,
    tolerance: float = TOLERANCE,
    begin: float | None = None,
) -> tuple[Tensor, Float[Tensor, "batch task class"], bool]:
    """Preconditioned nonlinear conjugate gradients (Polak-Ribière), all problems in step.

    The step length is Newton's along the direction; where that overshoots, the one that the bound makes safe.

    Args:
        space: where theta lives.
        target: 1 where an example is of the class, else 0.
        strength: C of each example; 0 for those that are not of the problem.
        start: theta, bias and latent to go on from; zeros where None.
        tolerance: stop when the squared preconditioned gradient is below this share of the objective.
        begin: the same for the start: where it is below this, nothing is done.

    Returns:
        theta, bias, and whether the start was good enough.
    """
    one = target.shape[2] == 1
    bound = strength / (4 if one else 2)
    zeros = target.new_zeros(target.shape[:-1])
    theta, bias, latent = start or (space.zero(target), zeros, torch.zeros_like(target))
    norm = torch.zeros_like(zeros[..., 0]) if start is None else space.inner(theta, theta, space.linear(theta))
    loss, probs = _loss(latent, target, strength)
    value = loss + norm / 2
    way, way_linear, way_bias = torch.zeros_like(theta), torch.zeros_like(target), torch.zeros_like(bias)
    old, old_bias, old_size = torch.zeros_like(theta), torch.zeros_like(bias), torch.ones_like(value)
    still = 0
    for i in range(MAX_STEPS):
        residual = strength * (target - probs)
        slope, slope_bias = space.gradient(theta, residual), -residual.sum(-1)
        ahead, ahead_linear = space.precondition(slope)
        ahead_bias = slope_bias / bound.sum(-1)
        size = space.inner(slope, ahead, ahead_linear) + (slope_bias * ahead_bias).sum(-1)
        # where examples are told for certain, a bias is curved far less than the bound, and its slope tells of more
        curved = (strength * probs * (1 - probs)).sum(-1).clamp(min=torch.finfo(probs.dtype).tiny)
        short = size + (slope_bias * (slope_bias / curved - ahead_bias)).sum(-1)
        active = short > (begin if begin is not None and i == 0 else tolerance) * value
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
        step = _ratio(descent, _curvature(probs, change, strength) + length)
        further, longer = latent + _times(step, change), norm + 2 * step * along + step**2 * length
        loss, further_probs = _loss(further, target, strength)
        trial = loss + longer / 2
        if bool((trial > value).any()):
            safe = _ratio(descent, (bound * change.square()).sum((-1, -2)) + length)
            step = torch.where(trial > value, safe, step)
            further, longer = latent + _times(step, change), norm + 2 * step * along + step**2 * length
            loss, further_probs = _loss(further, target, strength)
            trial = loss + longer / 2
        # what has converged stands still, since it would only walk about in its own rounding errors
        go = active & (trial <= value)
        still = 0 if bool(go.any()) else still + 1
        step = torch.where(go, step, 0)
        theta, bias = theta + _times(step, way), bias + _times(step, way_bias)
        latent, probs = (
            torch.where(go[..., None, None], *pair) for pair in ((further, latent), (further_probs, probs))
        )
        norm, value = torch.where(go, longer, norm), torch.where(go, trial, value)
    return theta, bias, i == 0


def _loss(latent: Tensor, target: Tensor, strength: Tensor) -> tuple[Float[Tensor, "batch task"], Tensor]:
    """C · Σ loss, and the probabilities, which need the same exponentials."""
    if latent.shape[2] == 1:
        norm, probs = torch.nn.functional.softplus(latent), latent.sigmoid()
    else:
        largest = latent.amax(2, keepdim=True)
        probs = (latent - largest).exp()
        total = probs.sum(2, keepdim=True)
        norm, probs = largest + total.log(), probs / total
    return ((norm - (latent * target).sum(2, keepdim=True)) * strength).sum((-1, -2)), probs


def _curvature(probs: Tensor, change: Tensor, strength: Tensor) -> Float[Tensor, "batch task"]:
    """Second derivative of the loss along a change of the latent."""
    first = probs * change
    return (first * (change - first.sum(2, keepdim=True)) * strength).sum((-1, -2))


def _times(factor: Float[Tensor, "batch task"], values: Float[Tensor, "batch task *rest"]) -> Tensor:
    return factor.reshape(*factor.shape, *[1] * (values.ndim - 2)) * values


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    # a problem that is solved to the last digit has no direction left: it stands still
    return (above / below).nan_to_num(0, 0, 0)
