"""`python -m dit_jax convert`: its commands."""

import dataclasses
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class FromTorch:
    """Converts a PyTorch checkpoint into a folder that dit_jax opens.

    Attributes:
      file: .pt, .pth, .bin, .ckpt or .safetensors, a shard index, or a folder with one of them; or
        TensorFlow's graph (.pb) of Inception-v3.
      out: folder to make.
      model: preset that the file must be, such as DiT-XL/2; read off the tensors by default.
      layout: whose keys these are; recognised by default.
      group: which of the file's state dicts; `ema` by default where there is one.
      num_classes: number of classes, where it is not to be the file's.
      reinitialise: beginnings of the paths of parameters to initialise anew, such as label_embed.
      vae: folder of the converted autoencoder that this model's samples are latents of.
      rae: the same for a representation autoencoder, all of which the folder holds.
    """

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    model: str | None = None
    layout: str | None = None
    group: str | None = None
    num_classes: int | None = None
    reinitialise: tuple[str, ...] = ()
    vae: str | None = None
    rae: str | None = None

    def __call__(self) -> list[str]:
        from dit_jax.interop.convert import convert_from_torch

        options = dataclasses.asdict(self)
        return convert_from_torch(options.pop("file"), options.pop("out"), **options)


@dataclasses.dataclass(frozen=True)
class ToTorch:
    """Converts a run, or converted weights, into a PyTorch file.

    Attributes:
      run: a run folder, one of its checkpoints, or a folder that from-torch made.
      file: .safetensors, .pt, .pth or .bin; or a folder to make, for diffusers and transformers.
      layout: whose keys to write: by default those it came with, or the first that fit the model.
      ema: decay of the averaged parameters to take; the first by default.
      raw: take the parameters that are not averaged.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    layout: str | None = None
    ema: float | None = None
    raw: bool = False

    def __call__(self) -> list[str]:
        from dit_jax.interop.convert import convert_to_torch

        ema = None if self.raw else (self.ema or "first")
        return convert_to_torch(self.run, self.file, layout=self.layout, ema=ema)


@dataclasses.dataclass(frozen=True)
class RAE:
    """Joins the parts of a representation autoencoder, for to-torch, from-torch --rae, or training.

    Attributes:
      out: folder to make.
      encoder: folder of a vision encoder that from-torch made.
      decoder: folder of its decoder, or the run that trained it.
      statistics: folder of the latents' statistics, of from-torch or of latent-stats.
    """

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    encoder: str
    decoder: str
    statistics: str | None = None

    def __call__(self) -> list[str]:
        from dit_jax.interop.rae import join_rae

        options = dataclasses.asdict(self)
        return join_rae(options.pop("out"), **options)
