"""An experiment that trains a decoder for a frozen encoder (RAE's first stage)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dit_jax.data.loader import Loader
from dit_jax.data.source import Source
from dit_jax.errors import InputError
from dit_jax.evaluation.reconstruction import WINDOW
from dit_jax.experiment import RunFolder, Training, check_training, refuse_shared_modules
from dit_jax.latents import RAE
from dit_jax.parallel.mesh import Parallel
from dit_jax.parallel.sharding import Layout
from dit_jax.randomness import Purpose, key_for
from dit_jax.training.optimizer import AdamW, Optimizer
from dit_jax.training.reconstruction.adversary import Adversary
from dit_jax.training.reconstruction.perceptual import Perceptual
from dit_jax.training.state import TrainState, state_shardings


@dataclasses.dataclass(frozen=True)
class DecoderExperiment:
    """A decoder, what it learns from and where it goes (RAE, arXiv 2510.11690).

    The loss is the mean absolute difference of pixels in [0, 1], a perceptual distance, and what a
    discriminator says. With each sample grid (`run.sample_every`) test images are measured.

    Attributes:
      latents: the frozen encoder and the decoder to train, whose first values are its
        `decoder_weights` if there are any; `statistics` play no part.
      data: the images.
      run: the run's folder; sample grids show test images over what became of them.
      crop: side of the squares that are cut out of the images at random; None takes them whole.
      noise: largest standard deviation of the noise that is added to the encoder's tokens, drawn
        for each image, so that the decoder bears with latents that a model made; 0 for none, as
        Scale-RAE (arXiv 2601.16208) has it.
      perceptual: distance besides that of pixels, or None.
      perceptual_weight: its weight.
      adversary: a discriminator, or None.
      optimizer: how the decoder's parameters move.
      training: the loop.
      loader: how records are read.
      parallel: the device mesh.
      held_out: test images that are reconstructed and measured with each grid.
    """

    latents: RAE
    data: Source
    run: RunFolder
    crop: int | None = None
    noise: float = 0.8
    perceptual: Perceptual | None = None
    perceptual_weight: float = 1.0
    adversary: Adversary | None = None
    optimizer: Optimizer = dataclasses.field(default_factory=AdamW)
    training: Training = dataclasses.field(default_factory=Training)
    loader: Loader = dataclasses.field(default_factory=Loader)
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
    held_out: int = 256

    def __post_init__(self):
        refuse_shared_modules(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that are decoded."""
        height, width, channels = self.data.shape
        return (height, width, channels) if self.crop is None else (self.crop, self.crop, channels)

    def check(self) -> None:
        """Raises InputError where the parts do not fit each other; opens no split of the data."""
        if self.shape[-1] != self.latents.decoder.channels:
            raise InputError(
                f"images of {self.shape[-1]} channels and a decoder of "
                f"{self.latents.decoder.channels}: set latents.decoder.channels"
            )
        if self.crop is not None and self.crop > min(self.data.shape[:2]):
            raise InputError(
                f"--crop {self.crop}: the images are of {self.data.shape[0]}x{self.data.shape[1]}"
            )
        self.latents.shape(self.shape)
        if self.noise < 0 or self.perceptual_weight < 0:
            raise InputError("--noise and --perceptual-weight must not be negative")
        if self.held_out < 2:
            raise InputError(f"--held-out {self.held_out}: measure at least 2 images")
        if self.run.sample_every and min(self.shape[:2]) < WINDOW:
            raise InputError(
                f"SSIM is of images of at least {WINDOW} pixels, and these have "
                f"{self.shape[0]}x{self.shape[1]}: set --run.sample-every 0"
            )
        if self.training.accumulation != 1:
            raise InputError("--training.accumulation: a decoder's batches are not cut up: set 1")
        check_training(self.training, self.run)

    def build_optimizers(self) -> dict[str, optax.GradientTransformation]:
        """An optimizer for each network that is trained."""
        steps = self.training.steps
        optimizers = {"decoder": self.optimizer.build(steps)}
        if self.adversary is not None:
            optimizers["discriminator"] = self.adversary.optimizer.build(steps)
        return optimizers

    def state_shardings(self, layout: Layout, abstract: TrainState) -> TrainState:
        """The decoder's state lies as any model's; the discriminator, which is small, whole."""
        whole = jax.tree.map(lambda _: layout.replicated, abstract)
        alone = abstract.replace(
            params=abstract.params["decoder"],
            opt_state=abstract.opt_state["decoder"],
            ema={decay: tree["decoder"] for decay, tree in abstract.ema.items()},
        )
        found = state_shardings(layout, self.build_optimizers()["decoder"], alone)
        return whole.replace(
            params=whole.params | {"decoder": found.params},
            opt_state=whole.opt_state | {"decoder": found.opt_state},
            ema={decay: {"decoder": tree} for decay, tree in found.ema.items()},
        )

    def fresh_state(self) -> TrainState:
        """Builds the state before the first step; there are averages of the decoder alone."""
        *_, channels = self.latents.shape(self.shape)
        key, again = jax.random.split(key_for(self.training.seed, 0, Purpose.INIT))
        tokens = jnp.zeros((1, 1, 1, channels))
        trained = {"decoder": self.latents.decoder.init(key, tokens)["params"]}
        spectral: dict[str, Any] = {}
        if self.adversary is not None:
            trained["discriminator"], spectral = self.adversary.init(again, self.shape)
        opt_state = {
            name: optimizer.init(trained[name])
            for name, optimizer in self.build_optimizers().items()
        }
        average = {"decoder": trained["decoder"]}
        ema = {str(decay): jax.tree.map(jnp.copy, average) for decay in self.training.ema}
        return TrainState(jnp.int32(0), trained | spectral, opt_state, ema)
