"""Many L2-regularised logistic regressions at once: every layer, split and labelling in one call.

Each problem has its own labels and rows. On these it is scikit-learn's `StandardScaler` and `LogisticRegression(C=C)`:

    minimise  C · Σ_i loss(y_i, w·z_i + b) + ½ |w|²

Conjugate gradients move all problems of a layer together, as columns of one matrix product. With more examples than
dimensions they search for w. With fewer, w = Xᵀa, and they search for a, one number per example, with one Gram matrix
for all problems: that of features standardised on all rows. A few corrections with x itself make the result exact.
Where the problems' rows are scaled too differently for that, few examples have a Gram matrix for each problem.

Shapes: x is (batch, example, d_model), one entry of the batch a layer; labels and rows are (problem, example), or
(example,) for one problem; weights are (batch, [problem,] class, d_model), one class row for two classes.

    weights = fit_probes(x, y, C=0.01, rows=rows)           # in the units of x
    right = weights.predict(x) == y                         # on the rows of each problem, and on those it never saw
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from elm_interp.errors import not_finite

TOLERANCE = 1e-11
"""Largest squared gradient at the end, as a share of the objective; 1e-3 is about scikit-learn's default."""
DOUBLE_BELOW = 1e-7
"""Tolerances that float32 cannot reach."""
PRECONDITIONED = 0.05
"""Factor on the tolerance when preconditioned, since that makes gradients shorter."""
SHARED = 0.3
"""Factor on the tolerance with the shared Gram matrix; each correction is checked against the tolerance itself."""
NEAR = 2.0
"""Largest variance of a feature over all rows, relative to that over a problem's rows, to share a Gram matrix."""
OWN = 256
"""Most examples with a Gram matrix for each problem; with more, making them takes longer than they save."""
CORRECTIONS, MAX_STEPS = 8, 2000
CACHE_NUMBERS = 2_000_000
"""Numbers of the matrices in use at a time, so that they stay in a processor's cache."""
Each = Float[Tensor, "batch problem 1 1"]


@dataclass(frozen=True)
class ProbeWeights:
    """Fitted logistic regressions."""

    coef: Float[Tensor, "batch *problem class d_model"]
    intercept: Float[Tensor, "batch *problem class"]

    def scores(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch *problem n class"]:
        """Logits of each class; for two classes one column, of the second against the first."""
        return torch.einsum("bnd,b...kd->b...nk", x.to(self.coef), self.coef) + self.intercept[..., None, :]

    def predict(self, x: Float[Tensor, "batch n d_model"]) -> Int[Tensor, "batch *problem n"]:
        """The likeliest class."""
        scores = self.scores(x)
        return (scores[..., 0] > 0).long() if scores.shape[-1] == 1 else scores.argmax(-1)

    def log_probabilities(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch *problem n class"]:
        """The log-probability of each class, in nats."""
        scores = self.scores(x)
        if scores.shape[-1] == 1:
            return torch.nn.functional.logsigmoid(torch.cat([-scores, scores], -1))
        return scores.log_softmax(-1)


@torch.no_grad()
def fit_probes(
    x: Float[Tensor, "batch example d_model"],
    y: Int[Tensor, "*problem example"],
    C: float | Float[Tensor, "#batch #problem"],
    *,
    rows: Bool[Tensor, "*problem example"] | None = None,
    classes: int | None = None,
    standardise: bool = True,
    tolerance: float = TOLERANCE,
) -> ProbeWeights:
    """Fit a logistic regression for each entry of the batch and each problem.

    Args:
        x: features, of any size and offset.
        y: labels 0 .. classes - 1; those outside a problem's rows do not matter.
        C: inverse strength of the penalty, as in scikit-learn; one for all, or one for each entry and problem.
        rows: which examples each problem is fitted to; None means all.
        classes: how many; None takes the largest label plus one.
        standardise: give each feature variance 1 on the problem's rows; one that does not vary has weight 0.
        tolerance: squared gradient to stop at, as a share of the objective.

    Returns:
        Weights for x as given; in float64, unless x is float32, the tolerance coarse and C < 1 (well-conditioned).

    Raises:
        ValueError: shapes that do not fit, C not positive, or rows of one class alone.
        NotFiniteError: a value is NaN or infinite; names its place in x.
    """
    rows = torch.ones_like(y, dtype=torch.bool) if rows is None else rows
    if x.ndim != 3 or y.ndim > 2 or y.shape != rows.shape or y.shape[-1] != x.shape[1] or not x.numel() * y.numel():
        shapes = f"{tuple(x.shape)}, {tuple(y.shape)} and {tuple(rows.shape)}"
        raise ValueError(f"x must be (batch, example, d_model), y and rows ([problem,] example); found {shapes}.")
    classes = max(int(y.max()) + 1, 2) if classes is None else classes
    strength = torch.as_tensor(C, dtype=torch.float64, device=x.device)
    _check(x, y, strength, classes, rows)
    fine = tolerance < DOUBLE_BELOW or bool(strength.max() >= 1)
    x, (n, d) = x.double() if fine or x.dtype != torch.float32 else x, x.shape[1:]
    strength = strength.to(x).expand(len(x), y[..., 0].numel())[..., None, None] * rows.reshape(1, -1, 1, n)
    one_hot = torch.nn.functional.one_hot(y.where(rows, 0).reshape(-1, n), classes).mT[:, classes == 2 :].to(x)
    each = max(1, CACHE_NUMBERS // (n * d + min(n, d) ** 2))
    parts = zip(torch.split(x, each), torch.split(strength, each), strict=True)
    found = [_fit(part, one_hot.expand(len(part), -1, -1, -1), c, standardise, tolerance) for part, c in parts]
    coef, intercept = torch.cat([part.coef for part in found]), torch.cat([part.intercept for part in found])
    return ProbeWeights(coef, intercept) if y.ndim == 2 else ProbeWeights(coef[:, 0], intercept[:, 0])


def _check(x: Tensor, y: Tensor, C: Tensor, classes: int, rows: Tensor) -> None:
    least, most = y.where(rows, classes).amin(-1), y.where(rows, -1).amax(-1)
    if not bool((C > 0).all()):
        raise ValueError(f"C is {float(C.min()):g}, expected a positive number.")
    if int(least.min()) < 0 or int(most.max()) >= classes:
        raise ValueError(f"labels are {int(least.min())} to {int(most.max())}, expected 0 to {classes - 1}.")
    if not bool(x.isfinite().all()):
        at = (~x.isfinite()).nonzero()[0].tolist()
        raise not_finite(f"x[{', '.join(map(str, at))}] is not finite", x.dtype)
    if bool((least >= most).any()):
        raise ValueError("the examples of some problem are all of one class; a probe needs two.")


def _fit(
    x: Tensor, target: Tensor, strength: Float[Tensor, "batch problem 1 n"], standardise: bool, tolerance: float
) -> ProbeWeights:
    """Weights for x. Centring it once, on all rows, serves all problems, since the bias is free."""
    centre = x.mean(1, keepdim=True)
    z = (x - centre).contiguous()
    spread, scale = torch.ones_like(centre), z.new_ones(len(z), target.shape[1], 1, z.shape[2])
    if standardise:
        spread, eps = z.square().mean(1, keepdim=True).sqrt(), torch.finfo(z.dtype).eps
        # a constant leaves rounding errors of its mean, which must not be scaled up to a feature
        spread = torch.where(spread > 10 * eps * centre.abs(), spread, torch.inf)
        z /= spread
        share = torch.nn.functional.normalize((strength > 0)[:, :, 0].to(z), p=1, dim=-1)
        squares = share @ z.square()
        variance = squares - (share @ z).square()
        scale = torch.where(variance > 100 * eps * squares, variance.rsqrt(), 0)[:, :, None]
    zero = torch.zeros_like(target)
    at = _Vector(zero, zero, zero[..., :1])
    if z.shape[1] > z.shape[2]:
        problems: _Examples = _Weights(target, strength, z, scale)
        start = at._replace(theta=target.new_zeros(*target.shape[:-1], z.shape[2]))
        at = _minimise(problems, start, PRECONDITIONED * tolerance)
    else:
        near = float(scale.amax()) ** 2 <= NEAR
        own = _own_grams(z, scale) if not near and z.shape[1] <= OWN else None
        problems = _Examples(target, strength, z, scale, own)
        shared = _Examples(target, strength, z, scale, z @ z.mT) if near else problems
        for _ in range(CORRECTIONS if near else 0):
            at = _minimise(shared, at, SHARED * tolerance)
            at = at._replace(linear=problems.linear(at.theta))
            state = _state(shared, at, shared.inner(at, at))
            if bool((_slope(shared, state)[-1] <= tolerance * state.value).all()):
                break
        else:
            at = _minimise(problems, at, tolerance)
    coef = problems.coef(at.theta) / spread[:, None]
    return ProbeWeights(coef, (at.bias - coef.double() @ centre.mT[:, None].double())[..., 0].to(coef))


def _own_grams(z: Float[Tensor, "batch n d"], scale: Tensor) -> Float[Tensor, "batch problem n n"]:
    """The Gram matrix of each problem's scaled features."""
    scaled = (z * one[:, 0, None] for one in scale.unbind(1))
    return torch.stack([rows @ rows.mT for rows in scaled], 1)


class _Vector(NamedTuple):
    """A place or a direction, for all problems; `linear` is what theta adds to the scores of the examples."""

    theta: Float[Tensor, "batch problem class n_or_d"]
    linear: Float[Tensor, "batch problem class n"]
    bias: Float[Tensor, "batch problem class 1"]

    def plus(self, factor: Each, way: "_Vector") -> "_Vector":
        return _Vector(*(a + factor * b for a, b in zip(self, way, strict=True)))


class _State(NamedTuple):
    """A place, the squared norm of its weights, and the objective and probabilities there."""

    at: _Vector
    norm: Each
    value: Each
    chances: Float[Tensor, "batch problem class n"]


class _Examples:
    """The problems with theta = a, where w = Xᵀa. A preconditioner would cost as much as the steps that it saves."""

    def __init__(self, target: Tensor, strength: Tensor, x: Tensor, scale: Tensor, gram: Tensor | None = None) -> None:
        # target: 1 where an example is of the class; strength: its C, 0 outside the problem; gram: of x without scale,
        # or of each problem's scaled x
        self.target, self.strength, self.x, self.scale, self.gram = target, strength, x, scale, gram
        # the largest curvature that the loss can have anywhere (Böhning)
        self.bound = strength / (4 if target.shape[2] == 1 else 2)

    def coef(self, theta: Tensor) -> Tensor:
        """Weights on x, with the problem's scaling in them."""
        return _product(theta, self.x) * self.scale.square()

    def linear(self, theta: Tensor) -> Tensor:
        """What theta adds to the scores of the examples."""
        if self.gram is None:
            return _product(self.coef(theta), self.x.mT)
        return theta @ self.gram if self.gram.ndim == 4 else _product(theta, self.gram)

    def gradient(self, theta: Tensor, residual: Tensor) -> Tensor:
        """Of the objective; `residual` is minus the loss's derivative by the score."""
        return theta - residual

    def precondition(self, gradient: Tensor) -> Tensor:
        return gradient

    def inner(self, left: _Vector, right: _Vector) -> Each:
        """Inner product of the weights; what the second adds to the scores must be known."""
        return (left.theta * right.linear).sum((-1, -2), keepdim=True)

    def product(self, left: _Vector, right: _Vector) -> Each:
        """Inner product of weights and biases."""
        return self.inner(left, right) + (left.bias * right.bias).sum(2, keepdim=True)


class _Weights(_Examples):
    """The problems, as theta = w on scaled x; with the preconditioner (1 + curvature · XᵀX)⁻¹."""

    def __init__(self, target: Tensor, strength: Tensor, x: Tensor, scale: Tensor) -> None:
        super().__init__(target, strength, x, scale)
        matrix = self.bound.mean((1, 2, 3))[:, None, None] * (x.mT @ x)
        matrix.diagonal(dim1=-2, dim2=-1).add_(1)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))

    def coef(self, theta: Tensor) -> Tensor:
        return theta * self.scale

    def gradient(self, theta: Tensor, residual: Tensor) -> Tensor:
        return theta - _product(residual, self.x) * self.scale

    def precondition(self, gradient: Tensor) -> Tensor:
        return _product(gradient, self.inverse)

    def inner(self, left: _Vector, right: _Vector) -> Each:
        return (left.theta * right.theta).sum((-1, -2), keepdim=True)


def _minimise(problems: _Examples, start: _Vector, tolerance: float) -> _Vector:
    """Preconditioned nonlinear conjugate gradients (Polak-Ribière), until every problem is within the tolerance."""
    state = _state(problems, start, problems.inner(start, start))
    way, old, size, still = start, start, torch.full_like(state.value, torch.inf), 0
    for _ in range(MAX_STEPS):
        slope, ahead, new_size, short = _slope(problems, state)
        active = short > tolerance * state.value
        if still >= 2 or not bool(active.any()):
            break
        keep = ((new_size - problems.product(old, ahead)) / size).clamp(min=0).nan_to_num(0, 0, 0)
        way, old, size = ahead.plus(keep, way), slope, new_size
        further = _line(problems, state, slope, way)
        # a problem that has converged stands still; steps would only follow its rounding errors
        go = active & (further.value <= state.value)
        still = 0 if bool(go.any()) else still + 1
        at = _Vector(*(torch.where(go, *pair) for pair in zip(further.at, state.at, strict=True)))
        state = _State(at, *(torch.where(go, *pair) for pair in zip(further[1:], state[1:], strict=True)))
    return state.at


def _state(problems: _Examples, at: _Vector, norm: Each) -> _State:
    scores = at.linear + at.bias
    if scores.shape[2] == 1:
        total, chances = torch.nn.functional.softplus(scores), scores.sigmoid()
    else:
        total, chances = scores.logsumexp(2, keepdim=True), scores.softmax(2)
    loss = (total - (scores * problems.target).sum(2, keepdim=True)) * problems.strength
    return _State(at, norm, loss.sum((-1, -2), keepdim=True) + norm / 2, chances)


def _slope(problems: _Examples, state: _State) -> tuple[_Vector, _Vector, Each, Each]:
    """The gradient, the same preconditioned, their inner product, and that product as convergence is judged by."""
    residual = problems.strength * (problems.target - state.chances)
    bias = -residual.sum(-1, keepdim=True)
    slope = _Vector(problems.gradient(state.at.theta, residual), residual, bias)
    theta = problems.precondition(slope.theta)
    ahead = _Vector(theta, problems.linear(theta), bias / problems.bound.sum(-1, keepdim=True))
    size = problems.product(slope, ahead)
    # where predictions are certain, the loss curves little along the bias: a small slope is still far from the minimum
    curvature = (problems.strength * state.chances * (1 - state.chances)).sum(-1, keepdim=True)
    more = bias * (bias / curvature.clamp(min=torch.finfo(bias.dtype).tiny) - ahead.bias)
    return slope, ahead, size, size + more.sum(2, keepdim=True)


def _line(problems: _Examples, state: _State, slope: _Vector, way: _Vector) -> _State:
    """Newton's step against the way; where it overshoots, the step that the bound makes safe."""
    change = way.linear + way.bias
    first = state.chances * change
    newton = first * (change - first.sum(2, keepdim=True)) * problems.strength
    down, along, length = problems.product(slope, way), problems.inner(state.at, way), problems.inner(way, way)
    step, over, further = torch.zeros_like(down), torch.ones_like(down, dtype=torch.bool), state
    for curve in (newton, problems.bound * change.square()):
        # a problem that is solved to the last digit has no direction left: it stands still
        step = torch.where(over, (down / (curve.sum((-1, -2), keepdim=True) + length)).nan_to_num(0, 0, 0), step)
        further = _state(problems, state.at.plus(-step, way), state.norm + step * (step * length - 2 * along))
        over = further.value > state.value
        if not bool(over.any()):
            break
    return further


def _product(values: Float[Tensor, "batch problem class i"], matrix: Float[Tensor, "batch i j"]) -> Tensor:
    """Of all problems and classes with one matrix; broadcasting would copy the matrix for each."""
    # the rows of several classes sum to zero, so that the last follows from the others
    rows = values if values.shape[2] == 1 else values[:, :, :-1]
    found = torch.unflatten(rows.flatten(1, 2) @ matrix, 1, rows.shape[1:3])
    return found if rows is values else torch.cat([found, -found.sum(2, keepdim=True)], 2)
