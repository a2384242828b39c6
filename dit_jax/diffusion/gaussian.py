"""The discrete Gaussian process of DDPM, with ADM's learned variance, as DiT uses it."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.diffusion.conversions import Coefficients, Estimate, estimate
from dit_jax.diffusion.process import Process, expand, per_sample_mean
from dit_jax.diffusion.vlb import discretized_log_likelihood, normal_kl
from dit_jax.errors import InputError


class Transition(NamedTuple):
    """The step from one kept index to the one before it; float32, one row an index.

    Attributes:
      index: index of the full process that the model is told.
      alpha: sqrt(abar).
      sigma: sqrt(1 - abar).
      alpha_before: sqrt(abar) of the kept index before, 1 for the first.
      c_x0: weight of x0 in the posterior mean.
      c_x: weight of x_t in the posterior mean.
      log_beta: log of the (respaced) beta: the upper bound of the learned variance.
      log_posterior: log of the posterior variance, clipped at the first index: the lower bound.
    """

    index: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    alpha_before: np.ndarray
    c_x0: np.ndarray
    c_x: np.ndarray
    log_beta: np.ndarray
    log_posterior: np.ndarray


@dataclasses.dataclass(frozen=True)
class Gaussian(Process):
    """q(x_i | x_0) = N(sqrt(abar_i) x0, 1 - abar_i) for i = 0..steps - 1, 0 the least noise.

    The noise is predicted. Library time is t = i / steps, and the model is told i. Betas are linear
    from 1e-4 to 0.02 (DDPM, arXiv 2006.11239), for 1000 steps, and scaled for other numbers.

    Attributes:
      steps: number of noise levels.
      variance: variance of the reverse step: interpolated by the model between its bounds and
        trained by the variational bound (arXiv 2102.09672, eq. 15), or one of the bounds.
    """

    steps: int = 1000
    variance: Literal["learned_range", "fixed_large", "fixed_small"] = "learned_range"

    def __post_init__(self):
        if self.steps <= 20:
            raise InputError(f"a Gaussian process of {self.steps} steps has betas over 1: use > 20")

    def output_channels(self, channels):
        return 2 * channels if self.variance == "learned_range" else channels

    def sample_time(self, key, batch):
        return jax.random.randint(key, (batch,), 0, self.steps) / self.steps

    def index(self, t: jax.Array) -> jax.Array:
        """Maps library time to the index of the process, int32."""
        return jnp.round(jnp.asarray(t) * self.steps).astype(jnp.int32)

    def model_time(self, t):
        return self.index(t).astype(jnp.float32)

    def coefficients(self, t):
        row = self._rows(t)
        return Coefficients(row.alpha, row.sigma)

    def estimate(self, x, t, output) -> Estimate:
        return estimate("noise", output[..., : x.shape[-1]], x, self.coefficients(expand(t, x)))

    def loss(self, output, x0, noise, t):
        """Mean squared error of the noise, plus the variational bound where variance is learned.

        The bound, in bits, trains the variance alone: the noise it sees is held constant.
        """
        channels = x0.shape[-1]
        mse = per_sample_mean(jnp.square(output[..., :channels] - noise))
        if self.variance != "learned_range":
            return mse, {}
        held = jax.lax.stop_gradient(output[..., :channels])
        output = jnp.concatenate([held, output[..., channels:]], axis=-1)
        vb = self._bound(output, x0, self.corrupt(x0, noise, t), t)
        return mse + vb, {"mse": mse.mean(), "vb": vb.mean()}

    def transitions(self, kept: np.ndarray) -> Transition:
        """Tables of the process that visits only the `kept` indices, ascending.

        Computed in float64 from the betas that make the kept marginals those of the full process
        (arXiv 2102.09672, section 4).
        """
        abar = self._alphas_bar()[kept]
        before = np.append(1.0, abar[:-1])
        beta = 1 - abar / before
        posterior = beta * (1 - before) / (1 - abar)
        # The first posterior variance is 0: its log is replaced by the next one.
        clipped = np.append(posterior[1] if len(kept) > 1 else beta[0], posterior[1:])
        table = Transition(
            index=kept,
            alpha=np.sqrt(abar),
            sigma=np.sqrt(1 - abar),
            alpha_before=np.sqrt(before),
            c_x0=beta * np.sqrt(before) / (1 - abar),
            c_x=(1 - before) * np.sqrt(1 - beta) / (1 - abar),
            log_beta=np.log(beta),
            log_posterior=np.log(clipped),
        )
        return Transition(*(np.float32(column) for column in table))

    def reverse(
        self, x: jax.Array, output: jax.Array, row: Transition
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance of p(x before | x), given the model's output at a row's index."""
        channels = x.shape[-1]
        x0 = (x - row.sigma * output[..., :channels]) / row.alpha
        mean = row.c_x0 * x0 + row.c_x * x
        if self.variance == "learned_range":
            share = (output[..., channels:] + 1) / 2
            return mean, share * row.log_beta + (1 - share) * row.log_posterior
        log_variance = row.log_beta if self.variance == "fixed_large" else row.log_posterior
        return mean, jnp.broadcast_to(log_variance, mean.shape)

    def _alphas_bar(self) -> np.ndarray:
        scale = 1000 / self.steps
        betas = np.linspace(scale * 1e-4, scale * 0.02, self.steps, dtype=np.float64)
        return np.cumprod(1 - betas)

    def _rows(self, t: jax.Array) -> Transition:
        index = self.index(t)
        tables = self.transitions(np.arange(self.steps))
        return Transition(*(jnp.asarray(column)[index] for column in tables))

    def _bound(self, output: jax.Array, x0: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """The term of the variational bound at each time [B], in bits a dimension."""
        row = self._rows(expand(t, x))
        mean, log_variance = self.reverse(x, output, row)
        true_mean = row.c_x0 * x0 + row.c_x * x
        kl = per_sample_mean(normal_kl(true_mean, row.log_posterior, mean, log_variance))
        likelihood = discretized_log_likelihood(x0, mean, log_variance / 2)
        bound = jnp.where(self.index(t) == 0, -per_sample_mean(likelihood), kl)
        return bound / np.log(2)
