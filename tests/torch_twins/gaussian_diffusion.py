"""Twin of DiT's Gaussian diffusion: respacing, losses, ancestral and DDIM sampling.

Source: DiT, arXiv 2212.09748 (after arXiv 2102.09672; DDIM: arXiv 2010.02502). Written from the
project's extract of the authors' conventions.

Images are [B, C, H, W]; model outputs are [B, 2C, H, W] (noise, then variance); step indices are
integers [B]. Tables are float64 numpy arrays, cast to the image's type when looked up. Functions
take numpy arrays or tensors: with at least one numpy array in, numpy arrays come out. A
``model_fn`` is always called with tensors, and may return either.
"""

import math

import numpy as np
import torch

from ._numpy_io import numpy_io, to_tensor


def linear_betas(num_timesteps=1000):
    """Linear noise schedule.

    Args:
        num_timesteps: Number of steps T; the end points are scaled by 1000 / T.

    Returns:
        Array [T], float64.
    """
    scale = 1000 / num_timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=np.float64)


def space_timesteps(num_timesteps, spec):
    """Chooses which of the original steps a shorter process keeps.

    Args:
        num_timesteps: Number of steps T of the original process.
        spec: "N" for N evenly spread steps; "a,b,c" for a, b, c steps from consecutive equal
            sections; "ddimN" for N steps at the smallest integer stride that gives exactly N.

    Returns:
        Increasing list of int.

    Raises:
        ValueError: If a section has fewer steps than asked for, or no stride gives N.
    """
    if spec.startswith("ddim"):
        count = int(spec.removeprefix("ddim"))
        for stride in range(1, num_timesteps + 1):
            if len(range(0, num_timesteps, stride)) == count:
                return list(range(0, num_timesteps, stride))
        raise ValueError(f"no integer stride keeps {count} of {num_timesteps} steps")
    counts = [int(part) for part in spec.split(",")]
    size, longer = divmod(num_timesteps, len(counts))
    kept = []
    start = 0
    for section, count in enumerate(counts):
        length = size + 1 if section < longer else size
        if count > length:
            raise ValueError(f"cannot keep {count} of {length} steps")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # The authors' code sums the stride; k * stride rounds otherwise for a few odd counts.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return kept


def respaced_betas(betas, kept):
    """Betas of the process that visits only the kept steps.

    Args:
        betas: Array [T].
        kept: Increasing list of S indices into betas.

    Returns:
        Array [S], float64.
    """
    abar = np.cumprod(1.0 - np.asarray(betas, dtype=np.float64))[np.asarray(kept)]
    return 1.0 - abar / np.append(1.0, abar[:-1])


def mean_flat(x):
    """Mean over every axis but the first."""
    return x.flatten(start_dim=1).mean(dim=1)


@numpy_io
def normal_kl(mean1, log_var1, mean2, log_var2):
    """KL divergence of normal 1 from normal 2, per element, in nats."""
    return 0.5 * (
        log_var2
        - log_var1
        - 1.0
        + torch.exp(log_var1 - log_var2)
        + (mean1 - mean2) ** 2 * torch.exp(-log_var2)
    )


@numpy_io
def approx_normal_cdf(x):
    """Tanh approximation of the standard normal's distribution function."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


@numpy_io
def discretised_gaussian_log_likelihood(x, mean, log_var):
    """Log-probability of x's bin of half-width 1/255 under a normal, per element, in nats.

    Args:
        x: [B, C, H, W]; below -0.999 and above 0.999 the bin reaches to infinity.
        mean: [B, C, H, W].
        log_var: [B, C, H, W], logarithm of the variance.

    Returns:
        [B, C, H, W].
    """
    centred = x - mean
    inverse_std = torch.exp(-0.5 * log_var)
    upper = approx_normal_cdf(inverse_std * (centred + 1.0 / 255.0))
    lower = approx_normal_cdf(inverse_std * (centred - 1.0 / 255.0))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1.0 - lower, upper - lower))
    return torch.log(probability.clamp(min=1e-12))


class GaussianDiffusion:
    """Noise-predicting diffusion with learned-range variance, possibly respaced.

    Attributes:
        timestep_map: Array [S], int64; the original index of each step, which the model gets.
        num_steps: S.
        betas, alphas_cumprod, alphas_cumprod_prev, sqrt_alphas_cumprod,
            sqrt_one_minus_alphas_cumprod, sqrt_recip_alphas_cumprod,
            sqrt_recipm1_alphas_cumprod, posterior_variance, posterior_log_variance_clipped,
            posterior_mean_coef1, posterior_mean_coef2, log_betas: Arrays [S], float64.

    Args:
        spec: Respacing as in space_timesteps, or None for all steps.
        num_timesteps: Number of steps of the original process.

    Raises:
        ValueError: If fewer than two steps are kept.
    """

    def __init__(self, spec=None, num_timesteps=1000):
        kept = list(range(num_timesteps)) if spec is None else space_timesteps(num_timesteps, spec)
        if len(kept) < 2:
            raise ValueError("the clipped posterior variance needs at least two steps")
        self.timestep_map = np.array(kept, dtype=np.int64)
        self.num_steps = len(kept)
        original = linear_betas(num_timesteps)
        self.betas = original if spec is None else respaced_betas(original, kept)
        self.log_betas = np.log(self.betas)
        alphas = 1.0 - self.betas
        abar = np.cumprod(alphas)
        abar_prev = np.append(1.0, abar[:-1])
        self.alphas_cumprod = abar
        self.alphas_cumprod_prev = abar_prev
        self.sqrt_alphas_cumprod = np.sqrt(abar)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1.0 - abar)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / abar)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / abar - 1.0)
        self.posterior_variance = self.betas * (1.0 - abar_prev) / (1.0 - abar)
        self.posterior_log_variance_clipped = np.log(
            np.append(self.posterior_variance[1], self.posterior_variance[1:])
        )
        self.posterior_mean_coef1 = self.betas * np.sqrt(abar_prev) / (1.0 - abar)
        self.posterior_mean_coef2 = (1.0 - abar_prev) * np.sqrt(alphas) / (1.0 - abar)

    @staticmethod
    def _at(table, t, x):
        """Looks up table [S] at t [B], as x's type, shaped to broadcast against x."""
        values = torch.from_numpy(table)[t.long()].to(x.dtype)
        return values.reshape(-1, *[1] * (x.ndim - 1))

    def _model_time(self, t):
        """Original indices [B], int64, for step indices t [B]."""
        return torch.from_numpy(self.timestep_map)[t.long()]

    @numpy_io
    def q_sample(self, x0, t, noise):
        """Diffuses x0 to step t: sqrt(abar) x0 + sqrt(1 - abar) noise."""
        return (
            self._at(self.sqrt_alphas_cumprod, t, x0) * x0
            + self._at(self.sqrt_one_minus_alphas_cumprod, t, x0) * noise
        )

    @numpy_io
    def q_posterior(self, x0, x_t, t):
        """Mean and clipped log-variance of q(x_{t-1} | x_t, x0).

        Args:
            x0: [B, C, H, W].
            x_t: [B, C, H, W].
            t: [B] step indices.

        Returns:
            Tuple of two [B, C, H, W].
        """
        mean = (
            self._at(self.posterior_mean_coef1, t, x_t) * x0
            + self._at(self.posterior_mean_coef2, t, x_t) * x_t
        )
        log_var = self._at(self.posterior_log_variance_clipped, t, x_t).expand_as(x_t)
        return mean, log_var

    @numpy_io
    def predict_x0(self, x_t, t, eps):
        """Clean image implied by the noise: sqrt(1/abar) x_t - sqrt(1/abar - 1) eps."""
        return (
            self._at(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t
            - self._at(self.sqrt_recipm1_alphas_cumprod, t, x_t) * eps
        )

    @numpy_io
    def learned_log_variance(self, v, t):
        """Log-variance between the posterior's (v = -1) and log beta (v = 1); v is not clamped."""
        fraction = (v + 1.0) / 2.0
        high = self._at(self.log_betas, t, v)
        low = self._at(self.posterior_log_variance_clipped, t, v)
        return fraction * high + (1.0 - fraction) * low

    @numpy_io
    def p_mean_log_variance(self, model_output, x_t, t):
        """Mean and log-variance of the model's p(x_{t-1} | x_t), and its x0.

        Args:
            model_output: [B, 2C, H, W].
            x_t: [B, C, H, W].
            t: [B] step indices (of this process, not the original one).

        Returns:
            Dict with "mean", "log_variance" and "x0", each [B, C, H, W].
        """
        eps, v = model_output.chunk(2, dim=1)
        x0 = self.predict_x0(x_t, t, eps)
        mean, _ = self.q_posterior(x0, x_t, t)
        return {"mean": mean, "log_variance": self.learned_log_variance(v, t), "x0": x0}

    @numpy_io
    def vb_terms(self, model_output, x0, x_t, t):
        """One term of the variational bound per sample, in bits per element.

        The term is KL(q(x_{t-1} | x_t, x0) || p), or at t = 0 the negative log-likelihood of x0.
        No stop-gradient is applied here.

        Args:
            model_output: [B, 2C, H, W].
            x0: [B, C, H, W].
            x_t: [B, C, H, W].
            t: [B] step indices.

        Returns:
            [B].
        """
        true_mean, true_log_var = self.q_posterior(x0, x_t, t)
        p = self.p_mean_log_variance(model_output, x_t, t)
        kl = mean_flat(normal_kl(true_mean, true_log_var, p["mean"], p["log_variance"]))
        nll = -mean_flat(discretised_gaussian_log_likelihood(x0, p["mean"], p["log_variance"]))
        return torch.where(t == 0, nll, kl) / math.log(2.0)

    @numpy_io
    def loss_terms(self, model_output, x0, t, noise):
        """Terms of the training loss per sample.

        The bound's term sees the predicted noise through a stop-gradient, so that it trains only
        the variance channels.

        Args:
            model_output: [B, 2C, H, W], the model's output at q_sample(x0, t, noise).
            x0: [B, C, H, W].
            t: [B] step indices.
            noise: [B, C, H, W].

        Returns:
            Dict with "mse", "vb" and "loss" = mse + vb, each [B].
        """
        eps, v = model_output.chunk(2, dim=1)
        mse = mean_flat((noise - eps) ** 2)
        x_t = self.q_sample(x0, t, noise)
        vb = self.vb_terms(torch.cat([eps.detach(), v], dim=1), x0, x_t, t)
        return {"mse": mse, "vb": vb, "loss": mse + vb}

    @numpy_io
    def training_losses(self, model_fn, x0, t, noise):
        """Runs the model at q_sample(x0, t, noise) and returns loss_terms.

        Args:
            model_fn: Function (x [B, C, H, W], original index [B] int64) -> [B, 2C, H, W].
            x0: [B, C, H, W].
            t: [B] step indices.
            noise: [B, C, H, W].

        Returns:
            Dict as in loss_terms.
        """
        output = to_tensor(model_fn(self.q_sample(x0, t, noise), self._model_time(t)))
        return self.loss_terms(output, x0, t, noise)

    @numpy_io
    def p_sample(self, model_output, x_t, t, noise):
        """One ancestral step; the noise is not added where t = 0.

        Args:
            model_output: [B, 2C, H, W].
            x_t: [B, C, H, W].
            t: [B] step indices.
            noise: [B, C, H, W].

        Returns:
            [B, C, H, W].
        """
        p = self.p_mean_log_variance(model_output, x_t, t)
        keep = (t != 0).to(x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1))
        return p["mean"] + keep * torch.exp(0.5 * p["log_variance"]) * noise

    @numpy_io
    def ddim_step(self, model_output, x_t, t, eta=0.0, noise=None):
        """One DDIM step; the noise is not added where t = 0.

        Args:
            model_output: [B, 2C, H, W]; the variance channels are not used.
            x_t: [B, C, H, W].
            t: [B] step indices.
            eta: Amount of noise; 0 is deterministic.
            noise: [B, C, H, W], or None for no noise.

        Returns:
            [B, C, H, W].
        """
        eps, _ = model_output.chunk(2, dim=1)
        x0 = self.predict_x0(x_t, t, eps)
        abar = self._at(self.alphas_cumprod, t, x_t)
        abar_prev = self._at(self.alphas_cumprod_prev, t, x_t)
        sigma = eta * torch.sqrt((1.0 - abar_prev) / (1.0 - abar) * (1.0 - abar / abar_prev))
        mean = torch.sqrt(abar_prev) * x0 + torch.sqrt(1.0 - abar_prev - sigma**2) * eps
        if noise is None:
            return mean
        keep = (t != 0).to(x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1))
        return mean + keep * sigma * noise

    def _loop(self, model_fn, x, step):
        """Runs step(k, output, x, t) for t = S-1..0, where k counts the calls from 0."""
        with torch.no_grad():
            for k, index in enumerate(reversed(range(self.num_steps))):
                t = torch.full((len(x),), index, dtype=torch.int64)
                output = to_tensor(model_fn(x, self._model_time(t)))
                x = step(k, output, x, t)
        return x

    @numpy_io
    def p_sample_loop(self, model_fn, x_T, noises):
        """Ancestral sampling from x_T to a sample.

        Args:
            model_fn: Function (x [B, C, H, W], original index [B] int64) -> [B, 2C, H, W].
            x_T: [B, C, H, W].
            noises: [S, B, C, H, W]; noises[k] belongs to the k-th step taken, whose index is
                S - 1 - k. The last is multiplied by zero.

        Returns:
            [B, C, H, W].
        """

        def step(k, output, x, t):
            return self.p_sample(output, x, t, to_tensor(noises[k]))

        return self._loop(model_fn, x_T, step)

    @numpy_io
    def ddim_sample_loop(self, model_fn, x_T, eta=0.0, noises=None):
        """DDIM sampling from x_T to a sample.

        Args:
            model_fn: As in p_sample_loop.
            x_T: [B, C, H, W].
            eta: Amount of noise; 0 is deterministic.
            noises: As in p_sample_loop, or None for no noise.

        Returns:
            [B, C, H, W].
        """

        def step(k, output, x, t):
            noise = None if noises is None else to_tensor(noises[k])
            return self.ddim_step(output, x, t, eta, noise)

        return self._loop(model_fn, x_T, step)
