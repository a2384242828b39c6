"""Writing state dicts to disk, a tensor at a time."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from dit_jax.errors import InputError
from dit_jax.interop.engine import TorchTensor
from dit_jax.interop.files import import_torch
from dit_jax.interop.layout import Found, Layout
from dit_jax.progress import track

_SAFETENSORS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
}


def write_state_dict(
    target: str,
    tensors: Sequence[TorchTensor],
    layout: Layout,
    found: Found,
    metadata: dict[str, str],
) -> None:
    """Writes a state dict as one file, or as the folder that a code base loads.

    Args:
      target: `.safetensors`, `.pt`, `.pth` or `.bin`; without a suffix a folder.
      tensors: what to write; each is made when its turn comes.
      layout: the family, which knows the folder's configuration.
      found: the model.
      metadata: kept in the header of a safetensors file.

    Raises:
      InputError: the target is there already or of an unknown kind, or this family has no folders.
    """
    path = pathlib.Path(target).expanduser()
    if path.exists():
        raise InputError(f"'{target}' is there already: choose another name")
    if path.suffix == ".safetensors":
        _write_safetensors(path, tensors, metadata)
    elif path.suffix in (".pt", ".pth", ".bin"):
        _write_pickle(path, tensors, metadata)
    elif path.suffix:
        raise InputError(f"'{target}': write .safetensors, .pt, .pth, .bin or a folder")
    elif layout.config is None:
        raise InputError(f"'{layout.name}' is a layout of single files: name {target}.safetensors")
    else:
        by_key = {tensor.key: tensor for tensor in tensors}
        config = layout.write_config(found, lambda key: by_key[key].make())
        path.mkdir(parents=True)
        (path / layout.config).write_text(json.dumps(config, indent=2) + "\n")
        _write_safetensors(path / layout.weights, tensors, metadata)


def _write_safetensors(
    path: pathlib.Path, tensors: Sequence[TorchTensor], metadata: dict[str, str]
) -> None:
    """The format is a header of offsets and then the bytes, so it can be written as it comes."""
    header, offset = {"__metadata__": {"format": "pt", **metadata}}, 0
    for tensor in tensors:
        size = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        header[tensor.key] = {
            "dtype": _SAFETENSORS[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # So that the data begin aligned.
    scratch = path.with_name(path.name + ".incomplete")
    try:
        with scratch.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for tensor in track(tensors, "writing"):
                stream.write(np.ascontiguousarray(tensor.make()).tobytes())
        scratch.rename(path)
    finally:
        scratch.unlink(missing_ok=True)


def _write_pickle(
    path: pathlib.Path, tensors: Sequence[TorchTensor], metadata: dict[str, str]
) -> None:
    """Goes through a safetensors file, which PyTorch maps, so that memory holds no whole model."""
    torch = import_torch()
    import safetensors

    mapped = path.with_name(path.name + ".safetensors")
    try:
        _write_safetensors(mapped, tensors, metadata)
        with safetensors.safe_open(mapped, "pt") as handle:
            torch.save({tensor.key: handle.get_tensor(tensor.key) for tensor in tensors}, path)
    finally:
        mapped.unlink(missing_ok=True)
