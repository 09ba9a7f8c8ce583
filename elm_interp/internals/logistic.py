"""Many L2-regularised logistic regressions at once: every layer, and every labelling of it, in one call.

Each problem is the one that scikit-learn's `LogisticRegression(C=C)` solves (the intercept is free of the penalty):

    minimise  C · Σ_i loss(y_i, w·x_i + b) + ½ |w|²

Newton's method, in the smaller of two spaces. Probes usually have fewer examples than dimensions; then w = Xᵀa, all that is
needed of X is its Gram matrix, made once for all labellings, and a step costs one Cholesky factor of (example × example) a
class. With many examples the step is taken in w itself. Steps are exact, so six to ten do, however weak the penalty.

Shapes: x is (batch, example, d_model); labels are (batch, example), or (batch, task, example) for several labellings of
the same x; weights are (batch, [task,] class, d_model), one class row for two classes, as in scikit-learn.

    weights = fit_probes(x, y, C=0.01)
    weights.predict(x)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_NUMBERS = 4_000_000
"""Numbers of the largest temporary: bounds memory, and keeps a step's matrices near the processor's cache."""
MAX_STEPS = 100
TOLERANCE = 1e-9
"""Stop when a step lowers the objective by less than this share; the error left is far smaller still."""


@dataclass(frozen=True)
class ProbeWeights:
    """Fitted logistic regressions."""

    coef: Float[Tensor, "*problem class d_model"]
    intercept: Float[Tensor, "*problem class"]

    def scores(self, x: Float[Tensor, "batch example d_model"]) -> Float[Tensor, "*problem example class"]:
        """Logits of each class; with two classes one column, of the second against the first."""
        if self.coef.ndim == 4:
            x = x[:, None]
        return x.to(self.coef) @ self.coef.mT + self.intercept[..., None, :]

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
        x: features; computed in float64, whatever their type.
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
    form = _Dual if n <= outputs * (d + 1) else _Primal
    per_chunk = max(1, CHUNK_NUMBERS // (tasks.shape[1] * form.size(n, d, outputs)))
    found = []
    for i in range(0, batch, per_chunk):
        problem = form(x[i : i + per_chunk].double(), tasks[i : i + per_chunk], C, outputs)
        found.append(_newton(problem))
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


class _Problem:
    """Logistic regressions in some parametrisation `theta`; latent = linear(theta) + bias."""

    def __init__(self, x: Tensor, y: Int[Tensor, "batch task n"], C: float, outputs: int) -> None:
        self.x, self.C, self.outputs = x[:, None], C, outputs
        one_hot = y[:, :, None] if outputs == 1 else torch.nn.functional.one_hot(y, outputs).mT
        self.target: Float[Tensor, "batch task class n"] = one_hot.double()

    def loss(self, latent: Tensor) -> Float[Tensor, "batch task"]:
        """C times the negative log-likelihood."""
        norm = torch.nn.functional.softplus(latent[:, :, 0]) if self.outputs == 1 else latent.logsumexp(2)
        return self.C * (norm - (latent * self.target).sum(2)).sum(-1)

    def probabilities(self, latent: Tensor) -> Tensor:
        return latent.sigmoid() if self.outputs == 1 else latent.softmax(2)


class _Dual(_Problem):
    """theta is a, (batch, task, class, n), with w = Xᵀa.

    At the optimum a = C (y - p). Linearised at f = K a + b: a = M (z - b), with W the curvature of the loss,
    M = (W⁻¹ + K)⁻¹ and z = f + W⁻¹ C (y - p); then b follows from Σ a = 0. Written so that nothing is divided by W.
    For several classes M is as in Rasmussen and Williams, Gaussian Processes for Machine Learning, algorithm 3.3.
    """

    def __init__(self, x: Tensor, y: Tensor, C: float, outputs: int) -> None:
        super().__init__(x, y, C, outputs)
        self.gram = self.x @ self.x.mT
        self.start = torch.zeros_like(self.target)

    @staticmethod
    def size(n: int, d: int, outputs: int) -> int:
        return n * n * outputs + n * d

    def linear(self, theta: Tensor) -> Tensor:
        return theta @ self.gram

    def penalty(self, theta: Tensor, linear: Tensor) -> Tensor:
        return 0.5 * (theta * linear).sum((-1, -2))

    def coef(self, theta: Tensor) -> Tensor:
        return theta @ self.x

    def solve(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        p = self.probabilities(latent)
        weight = self.C * p
        if self.outputs == 1:
            weight = weight * (1 - p)
            curved = weight * latent
        else:
            curved = weight * (latent - (p * latent).sum(2, keepdim=True))
        pull = curved + self.C * (self.target - p)
        # columns: M is applied to K · pull, and to each class's intercept
        eye = torch.eye(self.outputs, dtype=p.dtype)[:, None].expand(*p.shape, self.outputs)
        columns = torch.cat([self.linear(pull)[..., None], eye], -1)
        applied = self._apply(weight, columns)
        free, per_bias = pull - applied[..., 0], applied[..., 1:]
        gram, right = per_bias.sum(3), free.sum(3)
        if self.outputs > 1:
            # a constant added to all intercepts changes nothing: choose the sum zero
            gram = gram + gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        bias = torch.linalg.solve(gram, right)
        return free - (per_bias @ bias[..., None, :, None])[..., 0], bias

    def _apply(self, weight: Tensor, columns: Float[Tensor, "batch task class n k"]) -> Tensor:
        root = weight.sqrt()[..., None]
        inner = root * self.gram[:, :, None] * root.mT
        inner.diagonal(dim1=-2, dim2=-1).add_(1)
        factor = torch.linalg.cholesky(inner)
        if self.outputs == 1:
            return root * torch.cholesky_solve(root * columns, factor)
        each = root * torch.cholesky_inverse(factor) * root.mT
        shared = torch.cholesky_solve((each @ columns).sum(2), torch.linalg.cholesky(each.sum(2)))
        return each @ (columns - shared[:, :, None])


class _Primal(_Problem):
    """theta is w, (batch, task, class, d_model): for more examples than unknowns."""

    def __init__(self, x: Tensor, y: Tensor, C: float, outputs: int) -> None:
        super().__init__(x, y, C, outputs)
        self.start = torch.zeros(*self.target.shape[:3], x.shape[-1], dtype=x.dtype)
        self.extended = torch.cat([self.x, torch.ones_like(self.x[..., :1])], -1)

    @staticmethod
    def size(n: int, d: int, outputs: int) -> int:
        return (outputs * (d + 1)) ** 2 + n * d

    def linear(self, theta: Tensor) -> Tensor:
        return theta @ self.x.mT

    def penalty(self, theta: Tensor, linear: Tensor) -> Tensor:
        return 0.5 * theta.square().sum((-1, -2))

    def coef(self, theta: Tensor) -> Tensor:
        return theta

    def solve(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        p = self.probabilities(latent)
        width, k = self.extended.shape[-1], self.outputs
        hessian = torch.zeros(*p.shape[:2], k, width, k, width, dtype=p.dtype)
        pull = self.C * (self.target - p)
        for i in range(k):
            for j in range(k):
                weight = self.C * p[:, :, i] * ((1.0 if i == j else 0.0) - p[:, :, j])
                hessian[:, :, i, :, j] = self.extended.mT @ (weight[..., None] * self.extended)
                pull[:, :, i] += weight * latent[:, :, j]
        right = pull @ self.extended
        for i in range(k):
            hessian[:, :, i, :-1, i, :-1].diagonal(dim1=-2, dim2=-1).add_(1)
        if k > 1:
            # a constant added to all intercepts changes nothing: choose the sum zero
            hessian[:, :, :, -1, :, -1] += self.C
        solved = torch.linalg.solve(hessian.flatten(4).flatten(2, 3), right.flatten(2)).unflatten(-1, (k, width))
        return solved[..., :-1], solved[..., -1]


def _newton(problem: _Dual | _Primal) -> tuple[Tensor, Tensor]:
    """Minimise all problems in step; each stands still once it has converged."""
    theta, linear = problem.start, problem.linear(problem.start)
    bias = linear.new_zeros(linear.shape[:-1])
    value = problem.loss(linear + bias[..., None]) + problem.penalty(theta, linear)
    for _ in range(MAX_STEPS):
        new_theta, new_bias = problem.solve(linear + bias[..., None])
        new_linear = problem.linear(new_theta)
        share = torch.ones_like(value)
        for _ in range(30):
            # far from the optimum a full step may overshoot; the objective is convex, so some part of it descends
            trial = [
                old + share.reshape(*share.shape, *[1] * (old.ndim - 2)) * (new - old)
                for old, new in ((theta, new_theta), (linear, new_linear), (bias, new_bias))
            ]
            trial_value = problem.loss(trial[1] + trial[2][..., None]) + problem.penalty(trial[0], trial[1])
            worse = ~(trial_value <= value)
            if not bool((worse & (share > 0)).any()):
                break
            share = torch.where(worse, share / 2, share)
        better = ~worse
        gain = torch.where(better, value - trial_value, 0)
        theta = torch.where(better[..., None, None], trial[0], theta)
        linear = torch.where(better[..., None, None], trial[1], linear)
        bias = torch.where(better[..., None], trial[2], bias)
        value = torch.where(better, trial_value, value)
        if bool((gain <= TOLERANCE * value).all()):
            break
    return problem.coef(theta), bias
