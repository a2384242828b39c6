"""A decoder's training run, built and checked before its first step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.errors import InputError
from dit_jax.evaluation.reconstruction import psnr, ssim
from dit_jax.flops import count_flops
from dit_jax.images import save_grid, to_uint8
from dit_jax.latents import RAE
from dit_jax.metrics import Gaussian, frechet_distance
from dit_jax.parallel import hosts
from dit_jax.parallel.options import compiler_options
from dit_jax.parallel.sharding import Layout, place, use_layout
from dit_jax.training.reconstruction.experiment import DecoderExperiment
from dit_jax.training.reconstruction.step import DecoderStep
from dit_jax.training.state import TrainState
from dit_jax.training.trainer import TrainerBase
from dit_jax.weights import load_weights

# Images in a row of a grid, and rows of originals.
_COLUMNS, _ROWS = 8, 2
# Images that are reconstructed at once on each device.
_PREVIEWED = 8


class DecoderTrainer(TrainerBase):
    """A decoder in training."""

    def __init__(self, experiment: DecoderExperiment):
        """Checks the experiment and opens its run folder, mesh, data and frozen networks.

        Raises:
          InputError: the experiment cannot run, or the folder belongs to another one.
        """
        experiment.check()
        layout = Layout(experiment.parallel.mesh())
        devices, size = layout.ways("batch"), experiment.training.batch_size
        if size % devices:
            raise InputError(
                f"a batch of {size} does not divide over {devices} devices: use a multiple"
            )
        frozen = _load_frozen(experiment)
        abstract = jax.eval_shape(experiment.fresh_state)
        shardings = experiment.state_shardings(layout, abstract)
        super().__init__(experiment, layout, abstract, shardings)
        step = DecoderStep(experiment, experiment.build_optimizers(), layout)
        batch = {"image": jax.ShapeDtypeStruct((size, *experiment.data.shape), jnp.uint8)}
        self.image_flops = count_flops(step, abstract, batch, frozen) / size
        self._frozen = place(frozen, layout.replicated)
        average = shardings.ema[str(experiment.training.ema[0])]["decoder"]
        self._reconstruct = _make_reconstruct(experiment.latents, layout, average)
        if experiment.run.sample_every:
            experiment.data.open("test")  # If there is none, this is the time to say so.
        self._step = jax.jit(
            step,
            in_shardings=(shardings, layout.batch, layout.replicated),
            out_shardings=(shardings, layout.replicated),
            donate_argnums=0,
            compiler_options=compiler_options(layout.mesh.devices.flat[0].platform),
        )

    def first_state(self) -> TrainState:
        """Builds the state before the first step, from a decoder's weights if there are any."""
        state = super().first_state()
        weights = self.experiment.latents.decoder_weights
        if weights is None:
            return state
        params = {"decoder": load_weights(weights, state.params["decoder"], "decoder")}
        ema = {decay: jax.tree.map(jnp.copy, params) for decay in state.ema}
        return place(state.replace(params=state.params | params, ema=ema), self.shardings)

    def step(self, state, batch):
        return self._step(state, {"image": batch["image"]}, self._frozen)

    def preview(self, step, state):
        """Draws test images over what became of them, and measures all held-out ones.

        Returns:
          `psnr` (dB) and `ssim`, means over images, and `frechet_distance` of the encoder's tokens,
          averaged over each image: not FID, and not to be compared between encoders.
        """
        decoder = state.ema[str(self.experiment.training.ema[0])]["decoder"]
        real = self._held_out
        decoded, features = self._reconstruct_all(decoder, real)
        _, again = self._reconstruct_all(decoder, decoded)
        if hosts.is_main():
            path = self.folder / "samples" / f"step_{step:08d}.png"
            save_grid(path, _over_each_other(real, decoded), _COLUMNS)
        return {
            "psnr": float(np.mean(psnr(decoded, real))),
            "ssim": float(np.mean(ssim(decoded, real))),
            "frechet_distance": frechet_distance(Gaussian.of(again), Gaussian.of(features)),
        }

    @functools.cached_property
    def _held_out(self) -> np.ndarray:
        """The middle of test images from all over the split, uint8 [N, H, W, 3]."""
        e = self.experiment
        records = e.data.open("test")
        numbers = np.linspace(0, len(records) - 1, min(e.held_out, len(records))).astype(int)
        images = np.stack([records[int(i)]["image"] for i in numbers])
        top, left = ((big - small) // 2 for big, small in zip(images.shape[1:3], e.shape))
        return images[:, top : top + e.shape[0], left : left + e.shape[1]]

    def _reconstruct_all(self, decoder: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decoded images, and the mean token of each image, a batch at a time."""
        size, found = _PREVIEWED * self.layout.ways("batch"), []
        for start in range(0, len(images), size):
            rows = np.minimum(np.arange(start, start + size), len(images) - 1)
            batch = place(images[rows], self.layout.batch)
            results = self._reconstruct(decoder, self._frozen["encoder"], batch)
            found.append([np.asarray(x)[: len(images) - start] for x in results])
        decoded, features = (np.concatenate(parts) for parts in zip(*found))
        return decoded, features


def _make_reconstruct(rae: RAE, layout: Layout, decoder: Any) -> Callable:
    """Returns (decoder, encoder, images) -> (decoded images, mean tokens), jitted."""

    def reconstruct(decoder: Any, encoder: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        with use_layout(layout):
            tokens = rae.tokens(encoder, images)
            decoded = rae.pixels(rae.decoder.apply({"params": decoder}, tokens))
        return to_uint8(2 * decoded - 1), tokens.mean(axis=(1, 2))

    return jax.jit(
        reconstruct,
        in_shardings=(decoder, layout.replicated, layout.batch),
        out_shardings=layout.replicated,
    )


def _over_each_other(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Rows of the first images, each over its counterpart."""
    starts = range(0, min(len(above), _ROWS * _COLUMNS), _COLUMNS)
    return np.concatenate([x[i : i + _COLUMNS] for i in starts for x in (above, below)])


def _load_frozen(experiment: DecoderExperiment) -> dict[str, Any]:
    """Parameters of all networks that are not trained."""
    rae = dataclasses.replace(experiment.latents, statistics=None)
    frozen = {"encoder": rae.load()["encoder"]}
    if experiment.perceptual is not None:
        frozen["perceptual"] = experiment.perceptual.load()
    if experiment.adversary is not None:
        frozen["features"] = experiment.adversary.load()
    return frozen
