"""Whole conversions: a PyTorch file to a folder of this library's, and back."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from dit_jax.errors import InputError
from dit_jax.interop.engine import make_plan
from dit_jax.interop.files import StateDict, checksum, open_state_dict
from dit_jax.interop.layout import Found, Layout
from dit_jax.interop.layouts import choose_export, choose_layout, find_layout
from dit_jax.interop.rae import latents_of
from dit_jax.interop.runs import notes_of, run_of
from dit_jax.interop.store import Converted, Source, new_folder, write_converted
from dit_jax.interop.writing import write_state_dict
from dit_jax.latents import Latents
from dit_jax.latents.vae import VAE, AutoencoderKL
from dit_jax.presets import create_model, find_preset


def convert_from_torch(
    file: str,
    out: str,
    *,
    model: str | None = None,
    layout: str | None = None,
    group: str | None = None,
    num_classes: int | None = None,
    reinitialise: Sequence[str] = (),
    vae: str | None = None,
    rae: str | None = None,
) -> list[str]:
    """Converts a PyTorch checkpoint into a folder that `dit_jax.load` opens.

    Tensors are read, carried over and written one at a time. A failure leaves nothing behind. A
    `.safetensors` file that `convert_to_torch` wrote comes back as the model it was, with its
    process and sampling, unless `model` or `layout` says otherwise.

    Args:
      file: `.pt`, `.pth`, `.bin`, `.ckpt` or `.safetensors`, a shard index, or a folder with one.
      out: folder to make.
      model: preset that the file must be; read off the tensors by default.
      layout: whose keys these are; recognised by default.
      group: which of the file's state dicts; `ema` by default where there is one.
      num_classes: number of classes, where it is not to be the file's.
      reinitialise: beginnings of the paths of parameters to initialise anew.
      vae: folder of the converted autoencoder that this model's samples are latents of.
      rae: the same for a representation autoencoder, all of which the folder holds.

    Returns:
      What was done, a line each.

    Raises:
      InputError: lists everything in the file that does not fit.
    """
    new_folder(out)
    if vae is not None and rae is not None:
        raise InputError("--vae and --rae: samples are latents of one autoencoder, name one")
    state = open_state_dict(file, group)
    family, found = _recognise(state, model, layout)
    found = _change_model(found, model, num_classes)
    if vae is not None:
        found = _decoded_by(*_vae(vae), found)
    if rae is not None:
        latents = latents_of(rae)
        found = _decoded_by(latents, latents.decoder.patch, latents.decoder.channels, found)
    plan = make_plan(family.entries(found), state.shapes, found.abstract(), reinitialise)
    source = Source(
        pathlib.Path(file).name, checksum(state.files), family.name, state.group, family.licence
    )
    write_converted(out, plan, state.tensors, found, source)
    chosen = f", its '{state.group}' weights" if state.group else ""
    others = f" (not {', '.join(state.passed_over)})" if state.passed_over else ""
    return [f"{source.file}{chosen}{others}, read as {family.name}", *plan.report()]


def convert_to_torch(
    folder: str, file: str, *, layout: str | None = None, ema: float | None | str = "first"
) -> list[str]:
    """Converts a run, or converted weights, into a PyTorch file.

    Args:
      folder: a run folder, one of its checkpoints, or what `convert_from_torch` made.
      file: `.safetensors`, `.pt`, `.pth` or `.bin`; or a folder to make, for layouts of code bases
        that load folders.
      layout: whose keys to write: by default those it came with, or the first that fit the model.
      ema: which parameters of a run: the first EMA by default, one decay, or None for the raw ones.

    Returns:
      What was done, a line each.

    Raises:
      InputError: the model has no such layout, or the file is there already.
    """
    saved = Converted(folder, ema)
    family = choose_export(saved.found, layout or (saved.source and saved.source.layout))
    tensors = saved.tensors(family.entries(saved.found))
    source = dataclasses.asdict(saved.source) if saved.source else {}
    notes = {key: str(value) for key, value in source.items() if value}
    # A folder has a configuration of its own, and is what its code base makes of it.
    if family.config is None:
        notes |= notes_of(saved.found, family)
    write_state_dict(file, tensors, family, saved.found, notes)
    lines = [f"{len(tensors)} tensors written to {file} as {family.name}"]
    if saved.found.experiment and pathlib.Path(file).suffix in (".pt", ".pth", ".bin"):
        lines.append("tensors alone: to come back as the same run, write .safetensors")
    return lines


def _recognise(state: StateDict, model: str | None, layout: str | None) -> tuple[Layout, Found]:
    """The layout of a file's tensors, and the model that they are of."""
    own = run_of(state.notes) if model is None and layout is None else None
    if own is not None:
        name, found = own
        return find_layout(name), found
    family = choose_layout(state.shapes, layout, model and find_preset(model).layout)
    return family, family.describe(state.shapes, _config(family, state))


def _config(family: Layout, state: StateDict) -> dict[str, Any]:
    """The configuration beside the file, if its code base puts one there."""
    path = state.files[0].parent / (family.config or "")
    return json.loads(path.read_text()) if path.is_file() else {}


def _change_model(found: Found, model: str | None, num_classes: int | None) -> Found:
    """Exchanges the model that the shapes tell of by the one that was asked for."""
    if model is None and num_classes is None:
        return found
    if found.experiment is None:
        raise InputError(f"this is a {type(found.module).__name__}: it has no presets or classes")
    module = found.module
    if model is not None:
        process, made_by = find_preset(model).process, found.experiment.process
        if type(process) is not type(made_by):
            raise InputError(
                f"{model} is learned by a {type(process).__name__} process, and this layout's "
                f"models by a {type(made_by).__name__} one"
            )
        module = create_model(model, num_classes=module.num_classes)
    if num_classes is not None:
        module = module.clone(num_classes=num_classes)
    data = dataclasses.replace(found.experiment.data, classes=module.num_classes)
    experiment = dataclasses.replace(found.experiment, model=module, data=data)
    return dataclasses.replace(found, module=module, experiment=experiment)


def _vae(folder: str) -> tuple[VAE, int, int]:
    """The latent space of an autoencoder, its factor, and its images' channels."""
    found = Converted(folder, ema=None).found
    if not isinstance(found.module, AutoencoderKL):
        raise InputError(f"--vae '{folder}' holds a {type(found.module).__name__}, not a VAE")
    settings = found.notes["latent_space"]
    scale, shift = settings["scaling_factor"], settings.get("shift_factor") or 0.0
    latents = VAE(folder, found.module, scale=scale, shift=shift)
    return latents, found.module.factor, found.module.image_channels


def _decoded_by(latents: Latents, factor: int, image_channels: int, found: Found) -> Found:
    """Lets an autoencoder decode a model's samples, whose sides grow by `factor`."""
    if found.experiment is None:
        raise InputError(f"a {type(found.module).__name__} has no samples to decode")
    height, width, channels = found.inputs[1].shape[1:]
    images = (height * factor, width * factor, image_channels)
    theirs = latents.shape(images)[-1]
    if channels != theirs:
        raise InputError(
            f"the autoencoder has latents of {theirs} channels, and this model's have {channels}"
        )
    data = dataclasses.replace(found.experiment.data, array_shape=images)
    experiment = dataclasses.replace(found.experiment, latents=latents, data=data)
    return dataclasses.replace(found, experiment=experiment)
