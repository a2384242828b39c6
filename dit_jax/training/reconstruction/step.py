"""One step of a decoder's training, and of its discriminator's (RAE, arXiv 2510.11690)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dit_jax.latents.rae.decoder import FEATURES
from dit_jax.layers.patch import patchify
from dit_jax.layers.taps import COLLECTION
from dit_jax.parallel.sharding import Layout, use_layout
from dit_jax.randomness import Purpose, key_for
from dit_jax.training.reconstruction.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    quantised,
)
from dit_jax.training.reconstruction.discriminator import SPECTRAL
from dit_jax.training.reconstruction.experiment import DecoderExperiment
from dit_jax.training.state import TrainState, averaged

Metrics = dict[str, jax.Array]

_NOTHING_SEEN = dict.fromkeys(("fake_logit", "real_logit", "discriminator_loss"), np.float32(0))


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderStep:
    """(state, batch, frozen) -> (state, metrics): decoder first, then discriminator.

    `frozen` holds the parameters of the `encoder`, of the `perceptual` network and of the
    `features` that the discriminator looks at. Everything random is a function of (seed, step).

    Attributes:
      experiment: what is trained.
      optimizers: of `decoder` and `discriminator`.
      layout: where arrays lie.
    """

    experiment: DecoderExperiment
    optimizers: dict[str, optax.GradientTransformation]
    layout: Layout

    def __call__(
        self, state: TrainState, batch: dict[str, jax.Array], frozen: dict[str, Any]
    ) -> tuple[TrainState, Metrics]:
        """Takes one step on a batch with uint8 `image` [B, H, W, 3]."""
        e, step = self.experiment, state.step
        with use_layout(self.layout):
            images = batch["image"]
            if e.crop is not None:
                images = random_crop(self._key(step, Purpose.CROP), images, e.crop)
            tokens = e.latents.tokens(frozen["encoder"], images)
            real = images.astype(jnp.float32) / 255
            params, opt_state, metrics = self._decoder(state, frozen, tokens, real)
            if e.adversary is not None:
                changed, metrics_too = jax.lax.cond(
                    step >= e.adversary.starts,
                    lambda: self._discriminator(params, opt_state, step, frozen, tokens, real),
                    lambda: ((params, opt_state), _NOTHING_SEEN),
                )
                (params, opt_state), metrics = changed, metrics | metrics_too
            average = {"decoder": params["decoder"]}
        ema = {decay: averaged(float(decay), tree, average) for decay, tree in state.ema.items()}
        return TrainState(step + 1, params, opt_state, ema), metrics

    def _decoder(
        self, state: TrainState, frozen: Any, tokens: jax.Array, real: jax.Array
    ) -> tuple[Any, Any, Metrics]:
        e = self.experiment
        noisy = add_noise(self._key(state.step, Purpose.NOISE), tokens, e.noise)

        def decode(params: Any) -> tuple[jax.Array, jax.Array]:
            return self._decode(params, noisy)

        decoded, pull_back, features = jax.vjp(decode, state.params["decoder"], has_aux=True)
        measure = jax.value_and_grad(self._reconstruction, has_aux=True)
        (loss, metrics), slope = measure(decoded, frozen, real)
        if e.adversary is not None:
            adversarial, balanced, more = jax.lax.cond(
                state.step >= e.adversary.counts,
                lambda: self._deceive(state, frozen, decoded, features, slope),
                lambda: (jnp.float32(0), jnp.zeros_like(slope), jnp.float32(0)),
            )
            loss, slope = loss + e.adversary.weight * more * adversarial, slope + balanced
            metrics |= {"adversarial": adversarial, "adaptive_weight": more}
        (gradient,) = pull_back(slope)
        params, opt_state = self._update(state.params, state.opt_state, "decoder", gradient)
        metrics |= {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradient),
            "param_norm": optax.tree.norm(params["decoder"]),
        }
        return params, opt_state, metrics

    def _decode(self, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images in [0, 1] or so, and what the decoder's last layer made them of [B, N, D]."""
        rae = self.experiment.latents
        drawn, tapped = rae.decoder.apply({"params": params}, tokens, mutable=[COLLECTION])
        return rae.pixels(drawn), tapped[COLLECTION][FEATURES][0]

    def _reconstruction(
        self, decoded: jax.Array, frozen: Any, real: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        e = self.experiment
        l1 = jnp.abs(decoded - real).mean()
        if e.perceptual is None:
            return l1, {"l1": l1}
        perceptual = e.perceptual(frozen["perceptual"], 2 * decoded - 1, 2 * real - 1).mean()
        return l1 + e.perceptual_weight * perceptual, {"l1": l1, "perceptual": perceptual}

    def _deceive(
        self,
        state: TrainState,
        frozen: Any,
        decoded: jax.Array,
        features: jax.Array,
        slope: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The adversarial loss, its gradient at the images, weighted, and the adaptive weight."""
        e, params = self.experiment, state.params
        key = self._key(state.step, Purpose.AUGMENT)
        heads = params["discriminator"], params[SPECTRAL]

        def loss(decoded: jax.Array) -> jax.Array:
            features = e.adversary.features(frozen["features"], key, 2 * decoded - 1)
            return generator_loss(e.adversary.logits(*heads, features, iterate=False)[0])

        value, own = jax.value_and_grad(loss)(decoded)
        # The last layer draws normalised pixels, which the encoder's deviations then scale.
        scale, patch = jnp.array(e.latents.encoder.std), e.latents.decoder.patch
        slopes = [patchify(s * scale, patch) for s in (slope, own)]
        weight = adaptive_weight(features, *slopes)
        return value, e.adversary.weight * weight * own, weight

    def _discriminator(
        self,
        params: Any,
        opt_state: Any,
        step: jax.Array,
        frozen: Any,
        tokens: jax.Array,
        real: jax.Array,
    ) -> tuple[tuple[Any, Any], Metrics]:
        """One step of the heads, on what the decoder as it is now makes of tokens without noise."""
        adversary = self.experiment.adversary
        fake = quantised(2 * self._decode(params["decoder"], tokens)[0] - 1)
        key = jax.random.fold_in(self._key(step, Purpose.AUGMENT), 1)
        # Side by side, and not one after the other, so that every device keeps its own rows.
        pairs = jnp.stack([fake, 2 * real - 1], axis=1)
        images = pairs.reshape(-1, *real.shape[1:])
        features = adversary.features(frozen["features"], key, images)
        features = [x.reshape(-1, 2, *x.shape[1:]) for x in features]
        of_fake, of_real = ([x[:, i] for x in features] for i in (0, 1))

        def loss(heads: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            spectral = params[SPECTRAL]
            said_of_fake, spectral = adversary.logits(heads, spectral, of_fake, iterate=True)
            said_of_real, spectral = adversary.logits(heads, spectral, of_real, iterate=True)
            seen = {"fake_logit": said_of_fake.mean(), "real_logit": said_of_real.mean()}
            return discriminator_loss(said_of_real, said_of_fake), (spectral, seen)

        measure = jax.value_and_grad(loss, has_aux=True)
        (value, (spectral, seen)), gradient = measure(params["discriminator"])
        params, opt_state = self._update(params, opt_state, "discriminator", gradient)
        return (params | {SPECTRAL: spectral}, opt_state), seen | {"discriminator_loss": value}

    def _update(self, params: Any, opt_state: Any, name: str, gradient: Any) -> tuple[Any, Any]:
        """Moves the parameters of one network."""
        optimizer = self.optimizers[name]
        updates, changed = optimizer.update(gradient, opt_state[name], params[name])
        moved = optax.apply_updates(params[name], updates)
        return params | {name: moved}, opt_state | {name: changed}

    def _key(self, step: jax.Array, purpose: Purpose) -> jax.Array:
        return key_for(self.experiment.training.seed, step, purpose)


def add_noise(key: jax.Array, tokens: jax.Array, largest: float) -> jax.Array:
    """Adds normal noise to tokens [B, ...], with a deviation of its own for each image.

    It is uniform up to `largest`, as in RAE's code; its paper writes the absolute value of a normal
    number (arXiv 2510.11690).
    """
    deviation, noise = jax.random.split(key)
    shape = (len(tokens),) + (1,) * (tokens.ndim - 1)
    deviation = largest * jax.random.uniform(deviation, shape)
    return tokens + deviation * jax.random.normal(noise, tokens.shape)


def random_crop(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Cuts a square out of each image [B, H, W, C], at a place of its own."""
    room = jnp.array(images.shape[1:3]) - size + 1
    corners = jax.random.randint(key, (len(images), 2), 0, room)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), (size, size, image.shape[-1]))

    return jax.vmap(cut)(images, corners)
