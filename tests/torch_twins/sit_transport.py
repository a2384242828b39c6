"""Twin of SiT's interpolants, losses, and ODE and SDE samplers.

Source: SiT, arXiv 2401.08740. Written from the project's extract of the authors' conventions.

This is SiT's own clock: t = 0 is noise (x0), t = 1 is data (x1), and
x_t = alpha(t) x1 + sigma(t) x0. Images are [B, C, H, W] and times [B]. A prediction is one of
"velocity", "noise" (x0) and "score". A path is one of the names "linear", "gvp" and "vp", or an
object from get_path. Functions take numpy arrays or tensors: with at least one numpy array in,
numpy arrays come out. A ``model_fn(x, t)`` is always called with tensors, t [B], and may return
either. Computations are in x's type, and so are times.
"""

import itertools
import math

import torch

from ._numpy_io import numpy_io, to_tensor

PREDICTIONS = ("velocity", "noise", "score")


def _columns(t, x):
    """Gives t [B] x's type and the shape [B, 1, 1, 1]; a number is repeated over the batch."""
    t = torch.as_tensor(t, dtype=x.dtype).expand(len(x))
    return t.reshape(-1, *[1] * (x.ndim - 1))


class Linear:
    """Straight path: alpha = t, sigma = 1 - t.

    Methods take t as an array or tensor of any shape with at least one axis.
    """

    name = "linear"

    @numpy_io
    def alpha(self, t):
        """Weight of the data."""
        return t

    @numpy_io
    def d_alpha(self, t):
        """Time derivative of alpha."""
        return torch.ones_like(t)

    @numpy_io
    def sigma(self, t):
        """Weight of the noise."""
        return 1.0 - t

    @numpy_io
    def d_sigma(self, t):
        """Time derivative of sigma."""
        return -torch.ones_like(t)

    @numpy_io
    def d_log_alpha(self, t):
        """The ratio d_alpha / alpha."""
        return 1.0 / t

    @numpy_io
    def drift_pair(self, x, t):
        """The pair (f, w) for which velocity = w * score - f.

        Args:
            x: [B, C, H, W].
            t: [B].

        Returns:
            f [B, C, H, W] and w [B, 1, 1, 1].
        """
        t = _columns(t, x)
        ratio, sigma = self.d_log_alpha(t), self.sigma(t)
        return -ratio * x, ratio * sigma**2 - sigma * self.d_sigma(t)


class GVP(Linear):
    """Generalised variance-preserving path: alpha = sin(pi t / 2), sigma = cos(pi t / 2)."""

    name = "gvp"

    @numpy_io
    def alpha(self, t):
        """Weight of the data."""
        return torch.sin(math.pi / 2 * t)

    @numpy_io
    def d_alpha(self, t):
        """Time derivative of alpha."""
        return math.pi / 2 * torch.cos(math.pi / 2 * t)

    @numpy_io
    def sigma(self, t):
        """Weight of the noise."""
        return torch.cos(math.pi / 2 * t)

    @numpy_io
    def d_sigma(self, t):
        """Time derivative of sigma."""
        return -math.pi / 2 * torch.sin(math.pi / 2 * t)

    @numpy_io
    def d_log_alpha(self, t):
        """The ratio d_alpha / alpha."""
        return math.pi / (2.0 * torch.tan(math.pi / 2 * t))


class VP(Linear):
    """Variance-preserving path of the score SDE with beta from 0.1 (t = 1) to 20 (t = 0)."""

    name = "vp"
    beta_min = 0.1
    beta_max = 20.0

    def _log_alpha(self, t):
        """Logarithm m of alpha."""
        slope = self.beta_max - self.beta_min
        return -0.25 * (1.0 - t) ** 2 * slope - 0.5 * (1.0 - t) * self.beta_min

    @numpy_io
    def alpha(self, t):
        """Weight of the data."""
        return torch.exp(self._log_alpha(t))

    @numpy_io
    def d_alpha(self, t):
        """Time derivative of alpha."""
        return self.alpha(t) * self.d_log_alpha(t)

    @numpy_io
    def sigma(self, t):
        """Weight of the noise."""
        return torch.sqrt(1.0 - torch.exp(2.0 * self._log_alpha(t)))

    @numpy_io
    def d_sigma(self, t):
        """Time derivative of sigma."""
        return -torch.exp(2.0 * self._log_alpha(t)) * self.d_log_alpha(t) / self.sigma(t)

    @numpy_io
    def d_log_alpha(self, t):
        """The ratio d_alpha / alpha."""
        return 0.5 * (1.0 - t) * (self.beta_max - self.beta_min) + 0.5 * self.beta_min

    @numpy_io
    def drift_pair(self, x, t):
        """The pair (f, w) for which velocity = w * score - f; see Linear.drift_pair."""
        t = _columns(t, x)
        beta = self.beta_min + (1.0 - t) * (self.beta_max - self.beta_min)
        return -0.5 * beta * x, 0.5 * beta


PATHS = {"linear": Linear(), "gvp": GVP(), "vp": VP()}


def get_path(path):
    """Returns the path object for a name ("linear", "gvp", "vp"); passes objects through."""
    return PATHS[path] if isinstance(path, str) else path


@numpy_io
def interpolate(path, x0, x1, t):
    """Point on the path and its velocity.

    Args:
        path: Name or object.
        x0: Noise [B, C, H, W].
        x1: Data [B, C, H, W].
        t: [B].

    Returns:
        x_t and the target velocity, each [B, C, H, W].
    """
    path, t = get_path(path), _columns(t, x1)
    x_t = path.alpha(t) * x1 + path.sigma(t) * x0
    return x_t, path.d_alpha(t) * x1 + path.d_sigma(t) * x0


@numpy_io
def score_from_velocity(path, velocity, x, t):
    """Score at x [B, C, H, W] and t [B] from the velocity there."""
    path, t = get_path(path), _columns(t, x)
    ratio, sigma = path.alpha(t) / path.d_alpha(t), path.sigma(t)
    return (ratio * velocity - x) / (sigma**2 - ratio * path.d_sigma(t) * sigma)


@numpy_io
def noise_from_velocity(path, velocity, x, t):
    """Expected noise x0 at x [B, C, H, W] and t [B] from the velocity there."""
    path, t = get_path(path), _columns(t, x)
    ratio = path.alpha(t) / path.d_alpha(t)
    return (ratio * velocity - x) / (ratio * path.d_sigma(t) - path.sigma(t))


@numpy_io
def velocity_from_score(path, score, x, t):
    """Velocity at x [B, C, H, W] and t [B] from the score there."""
    f, w = get_path(path).drift_pair(x, t)
    return w * score - f


@numpy_io
def score_from_noise(path, noise, t):
    """Score from the expected noise [B, C, H, W] at t [B]."""
    return -noise / get_path(path).sigma(_columns(t, noise))


@numpy_io
def velocity_from_noise(path, noise, x, t):
    """Velocity at x [B, C, H, W] and t [B] from the expected noise there."""
    return velocity_from_score(path, score_from_noise(path, noise, t), x, t)


@numpy_io
def output_to_velocity(path, prediction, output, x, t):
    """Velocity from a model's output of the given kind at x [B, C, H, W] and t [B]."""
    if prediction == "velocity":
        return output
    if prediction == "noise":
        return velocity_from_noise(path, output, x, t)
    if prediction == "score":
        return velocity_from_score(path, output, x, t)
    raise ValueError(f"prediction must be one of {PREDICTIONS}, not {prediction!r}")


@numpy_io
def output_to_score(path, prediction, output, x, t):
    """Score from a model's output of the given kind at x [B, C, H, W] and t [B]."""
    if prediction == "velocity":
        return score_from_velocity(path, output, x, t)
    if prediction == "noise":
        return score_from_noise(path, output, t)
    if prediction == "score":
        return output
    raise ValueError(f"prediction must be one of {PREDICTIONS}, not {prediction!r}")


@numpy_io
def loss_weight(path, x_t, t, weight=None):
    """Weight of the noise and score losses.

    Args:
        path: Name or object.
        x_t: [B, C, H, W]; only its shape and type matter.
        t: [B].
        weight: None or "none", "velocity" or "likelihood".

    Returns:
        [B, 1, 1, 1].

    Raises:
        ValueError: If the weight is unknown.
    """
    path = get_path(path)
    _, w = path.drift_pair(x_t, t)
    sigma = path.sigma(_columns(t, x_t))
    if weight in (None, "none"):
        return torch.ones_like(sigma)
    if weight == "velocity":
        return (w / sigma) ** 2
    if weight == "likelihood":
        return w / sigma**2
    raise ValueError(f"unknown loss weight {weight!r}")


@numpy_io
def loss(path, prediction, model_output, x0, x1, t, weight=None):
    """Training loss per sample.

    Args:
        path: Name or object.
        prediction: "velocity", "noise" or "score".
        model_output: [B, C, H, W], the model's output at interpolate(path, x0, x1, t)[0].
        x0: Noise [B, C, H, W].
        x1: Data [B, C, H, W].
        t: [B].
        weight: As in loss_weight; ignored for the velocity.

    Returns:
        [B], means over C, H, W.

    Raises:
        ValueError: If the prediction is unknown.
    """
    x_t, u = interpolate(path, x0, x1, t)
    if prediction == "velocity":
        error = (model_output - u) ** 2
    elif prediction == "noise":
        error = loss_weight(path, x_t, t, weight) * (model_output - x0) ** 2
    elif prediction == "score":
        sigma = get_path(path).sigma(_columns(t, x1))
        error = loss_weight(path, x_t, t, weight) * (model_output * sigma + x0) ** 2
    else:
        raise ValueError(f"prediction must be one of {PREDICTIONS}, not {prediction!r}")
    return error.flatten(start_dim=1).mean(dim=1)


def default_eps(path, prediction):
    """Returns the distances (train_eps, sample_eps) kept from the ends of the interval."""
    if get_path(path).name == "vp":
        return 1e-5, 1e-3
    return (0.0, 0.0) if prediction == "velocity" else (1e-3, 1e-3)


def train_interval(path, prediction):
    """Interval from which training draws t uniformly.

    Args:
        path: Name or object.
        prediction: "velocity", "noise" or "score".

    Returns:
        Tuple (t0, t1) of float.
    """
    return _interval(path, prediction, default_eps(path, prediction)[0])


def ode_interval(path, prediction):
    """Interval over which the ODE sampler integrates; arguments as in train_interval."""
    return _interval(path, prediction, default_eps(path, prediction)[1])


def _interval(path, prediction, eps):
    """Interval for training and the ODE."""
    if get_path(path).name == "vp":
        return 0.0, 1.0 - eps
    return (0.0, 1.0) if prediction == "velocity" else (eps, 1.0 - eps)


def sde_interval(path, prediction, form, last_step_size=0.04):
    """Interval over which the SDE sampler steps, before its last step.

    Args:
        path: Name or object.
        prediction: "velocity", "noise" or "score".
        form: Name of the diffusion coefficient, see diffusion.
        last_step_size: Length of the last step; 0 for no last step.

    Returns:
        Tuple (t0, t1) of float.
    """
    eps = default_eps(path, prediction)[1]
    late_start = form == "SBDM" or prediction != "velocity"
    t0 = eps if get_path(path).name != "vp" and late_start else 0.0
    return t0, 1.0 - (last_step_size if last_step_size > 0 else eps)


@numpy_io
def diffusion(path, x, t, form="sigma", norm=1.0):
    """Diffusion coefficient D(t) of the SDE dx = [v + D score] dt + sqrt(2 D) dW.

    Args:
        path: Name or object.
        x: [B, C, H, W]; only its shape and type matter.
        t: [B].
        form: "constant", "SBDM", "sigma", "linear", "decreasing" or "increasing-decreasing"
            (also called "sin").
        norm: Scale of D.

    Returns:
        [B, 1, 1, 1].

    Raises:
        ValueError: If the form is unknown.
    """
    path = get_path(path)
    column = _columns(t, x)
    if form == "constant":
        return norm * torch.ones_like(column)
    if form == "SBDM":
        return norm * path.drift_pair(x, t)[1]
    if form == "sigma":
        return norm * path.sigma(column)
    if form == "linear":
        return norm * (1.0 - column)
    if form == "decreasing":
        return 0.25 * (norm * torch.cos(math.pi * column) + 1.0) ** 2
    if form in ("increasing-decreasing", "sin"):
        return norm * torch.sin(math.pi * column) ** 2
    raise ValueError(f"unknown diffusion form {form!r}")


def _evaluate(model_fn, x, t):
    """Calls the model with t, a number or [B], as a tensor [B] of x's type."""
    t = torch.as_tensor(t, dtype=x.dtype).expand(len(x))
    return to_tensor(model_fn(x, t))


@numpy_io
def ode_drift(model_fn, x, t, *, path, prediction="velocity"):
    """Velocity at x [B, C, H, W] and t, a number or [B]; one model call."""
    return output_to_velocity(path, prediction, _evaluate(model_fn, x, t), x, t)


@numpy_io
def sde_drift(model_fn, x, t, *, path, prediction="velocity", form="sigma", norm=1.0):
    """Drift v + D score of the SDE at x [B, C, H, W] and t, a number or [B]; one model call."""
    output = _evaluate(model_fn, x, t)
    velocity = output_to_velocity(path, prediction, output, x, t)
    score = output_to_score(path, prediction, output, x, t)
    return velocity + diffusion(path, x, t, form, norm) * score


@numpy_io
def ode_sample(
    model_fn,
    x,
    *,
    path,
    prediction="velocity",
    method="euler",
    num_points=50,
    t0=None,
    t1=None,
):
    """Integrates the probability-flow ODE on the fixed grid linspace(t0, t1, num_points).

    Args:
        model_fn: Function (x [B, C, H, W], t [B]) -> [B, C, H, W].
        x: Start [B, C, H, W] at t0.
        path: Name or object.
        prediction: "velocity", "noise" or "score".
        method: "euler" or "heun".
        num_points: Number of grid points, so one more than the number of steps.
        t0: First time; by default ode_interval's.
        t1: Last time; by default ode_interval's.

    Returns:
        [B, C, H, W] at t1.

    Raises:
        ValueError: If the method is unknown.
    """
    if method not in ("euler", "heun"):
        raise ValueError(f"unknown method {method!r}")
    default_t0, default_t1 = ode_interval(path, prediction)
    t0 = default_t0 if t0 is None else t0
    t1 = default_t1 if t1 is None else t1
    grid = torch.linspace(t0, t1, num_points, dtype=x.dtype)
    how = {"path": path, "prediction": prediction}
    with torch.no_grad():
        for now, after in itertools.pairwise(grid):
            dt = after - now
            k1 = ode_drift(model_fn, x, now, **how)
            if method == "heun":
                k2 = ode_drift(model_fn, x + dt * k1, after, **how)
                x = x + dt / 2.0 * (k1 + k2)
            else:
                x = x + dt * k1
    return x


@numpy_io
def sde_step(model_fn, x, t, dt, noise, *, method="euler", **how):
    """One step of the SDE sampler.

    Args:
        model_fn: Function (x [B, C, H, W], t [B]) -> [B, C, H, W].
        x: [B, C, H, W].
        t: Time at the start of the step, a number.
        dt: Length of the step, a number.
        noise: Standard normal values [B, C, H, W].
        method: "euler" (Euler-Maruyama) or "heun" (noise first, then a Heun step of the drift).
        **how: path, prediction, form and norm, as in sde_drift.

    Returns:
        [B, C, H, W] at t + dt.

    Raises:
        ValueError: If the method is unknown.
    """
    dt = torch.as_tensor(dt, dtype=x.dtype)
    d = diffusion(how["path"], x, t, how.get("form", "sigma"), how.get("norm", 1.0))
    kick = torch.sqrt(2.0 * d) * torch.sqrt(dt) * noise
    if method == "euler":
        return x + sde_drift(model_fn, x, t, **how) * dt + kick
    if method == "heun":
        noisy = x + kick
        k1 = sde_drift(model_fn, noisy, t, **how)
        k2 = sde_drift(model_fn, noisy + dt * k1, t + dt, **how)
        return noisy + dt / 2.0 * (k1 + k2)
    raise ValueError(f"unknown method {method!r}")


@numpy_io
def last_step(model_fn, x, t, *, kind="mean", size=0.04, **how):
    """Last step of the SDE sampler, without noise.

    Args:
        model_fn: Function (x [B, C, H, W], t [B]) -> [B, C, H, W].
        x: [B, C, H, W].
        t: Time before the step, a number.
        kind: "mean" (x + SDE drift * size), "euler" (x + velocity * size), "tweedie"
            (x / alpha + sigma^2 / alpha * score) or None (x).
        size: Length of the step, not used by "tweedie" and None.
        **how: path, prediction, form and norm, as in sde_drift.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind is None:
        return x
    if kind == "mean":
        return x + sde_drift(model_fn, x, t, **how) * size
    prediction = how.get("prediction", "velocity")
    if kind == "euler":
        return x + ode_drift(model_fn, x, t, path=how["path"], prediction=prediction) * size
    if kind == "tweedie":
        path, column = get_path(how["path"]), _columns(t, x)
        alpha, sigma = path.alpha(column), path.sigma(column)
        score = output_to_score(path, prediction, _evaluate(model_fn, x, t), x, t)
        return x / alpha + sigma**2 / alpha * score
    raise ValueError(f"unknown last step {kind!r}")


@numpy_io
def sde_sample(
    model_fn,
    x,
    noises,
    *,
    path,
    prediction="velocity",
    form="sigma",
    norm=1.0,
    method="euler",
    num_steps=250,
    last="mean",
    last_step_size=0.04,
    t0=None,
    t1=None,
):
    """Samples with the SDE on linspace(t0, t1, num_steps), then takes the last step at t1.

    Args:
        model_fn: Function (x [B, C, H, W], t [B]) -> [B, C, H, W].
        x: Start [B, C, H, W] at t0.
        noises: [num_steps - 1, B, C, H, W], one array per step, in the order of the steps.
        path: Name or object.
        prediction: "velocity", "noise" or "score".
        form: Diffusion coefficient, see diffusion.
        norm: Scale of the diffusion coefficient.
        method: "euler" or "heun".
        num_steps: Number of grid points: num_steps - 1 noisy steps, and the last step.
        last: Kind of the last step, see last_step. None leaves it out.
        last_step_size: Length of the last step; taken as 0 where last is None.
        t0: First time; by default sde_interval's.
        t1: Time of the last step; by default sde_interval's.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: If the number of noise arrays is wrong.
    """
    if len(noises) != num_steps - 1:
        raise ValueError(f"expected {num_steps - 1} noise arrays, got {len(noises)}")
    last_step_size = 0.0 if last is None else last_step_size
    default_t0, default_t1 = sde_interval(path, prediction, form, last_step_size)
    t0 = default_t0 if t0 is None else t0
    t1 = default_t1 if t1 is None else t1
    grid = torch.linspace(t0, t1, num_steps, dtype=x.dtype)
    dt = grid[1] - grid[0]
    how = {"path": path, "prediction": prediction, "form": form, "norm": norm}
    with torch.no_grad():
        for t, noise in zip(grid[:-1], noises, strict=True):
            x = sde_step(model_fn, x, t, dt, to_tensor(noise), method=method, **how)
        return last_step(model_fn, x, grid[-1], kind=last, size=last_step_size, **how)
