"""Are images encoded, decoded and cached as fast as by diffusers in PyTorch?

The same random weights on both sides: diffusers' AutoencoderRAE as it comes (DINOv2-B with
registers, a decoder of 8 blocks, 256 px) and AutoencoderKL of Stable Diffusion's size. Images a
second, in turns: to encode, to decode, and to write a cache of latents: ours by `cache-latents`'
function, theirs by the loop that people write, a batch at a time into one .npy file an image. Both
read images from memory. Compiling is not counted, but for that of a cache: once a call.

    python benchmarks/latents.py [--cases rae vae] [--batch 4] [--images 16] [--repeats 5]

Needs torch and diffusers, as the tests do (`pip install -e ".[test,torch,peers]"`).
"""

import argparse
import contextlib
import io
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import report
import torch

SIDE = 256
# What Stable Diffusion's autoencoder is, in diffusers' words.
STABLE_DIFFUSION = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def main() -> None:
    """Times all cases and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=("rae", "vae"), default=["rae", "vae"])
    parser.add_argument("--batch", type=int, default=4, help="images at once")
    parser.add_argument("--images", type=int, default=16, help="images of a cache")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    results = []
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            results += measure(case, pathlib.Path(folder), options)
    report.save("latents", __doc__, results, options.out)


def measure(case: str, folder: pathlib.Path, options: argparse.Namespace) -> list[dict]:
    """Images a second of all that one autoencoder does, on both sides."""
    with contextlib.redirect_stdout(io.StringIO()):
        theirs, latents = {"rae": make_rae, "vae": make_vae}[case](folder)
    shape = (options.images, SIDE, SIDE, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pairs = coders(theirs, latents, images[: options.batch])
    pairs["cache"] = cachers(theirs, latents, images, folder, options)
    rows = []
    for name, (ours, other) in pairs.items():
        count = options.images if name == "cache" else options.batch
        speeds = in_turns(ours, other, count, options.repeats)
        rows.append({"case": case, "what": name, "batch": options.batch, **speeds})
        print(rows[-1], flush=True)
    return rows


def make_rae(folder: pathlib.Path):
    """Diffusers' AutoencoderRAE with random weights, and the same one here."""
    from diffusers import AutoencoderRAE

    from dit_jax.interop.rae import latents_of

    torch.manual_seed(0)
    theirs = AutoencoderRAE(image_size=SIDE).eval()
    convert(theirs, folder)
    return theirs, latents_of(str(folder / "ours"))


def make_vae(folder: pathlib.Path):
    """Diffusers' AutoencoderKL with random weights, and the same one here."""
    from diffusers import AutoencoderKL

    from dit_jax.latents import VAE

    torch.manual_seed(0)
    theirs = AutoencoderKL(**STABLE_DIFFUSION).eval()
    convert(theirs, folder)
    return theirs, VAE(str(folder / "ours"))


def convert(theirs, folder: pathlib.Path) -> None:
    """Brings a PyTorch autoencoder here."""
    from dit_jax.interop.convert import convert_from_torch

    theirs.save_pretrained(folder / "theirs")
    convert_from_torch(str(folder / "theirs"), str(folder / "ours"))


def coders(theirs, latents, images: np.ndarray) -> dict[str, tuple[Callable, Callable]]:
    """What encodes and decodes a batch once, here and there."""
    import jax

    encoder, decoder = latents.load(), latents.load_decoder()
    store, decode = jax.jit(latents.store), jax.jit(latents.decode)
    shape = len(images), *latents.shape((SIDE, SIDE, 3))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    z = torch.tensor(x.transpose(0, 3, 1, 2))
    return {
        "encode": (lambda: np.asarray(store(encoder, images)), lambda: encode(theirs, images)),
        "decode": (lambda: np.asarray(decode(decoder, x)), lambda: draw(theirs, z)),
    }


@torch.inference_mode()
def encode(theirs, images: np.ndarray) -> np.ndarray:
    """Latents [B, C, h, w] of uint8 images [B, H, W, 3], or of a VAE their moments."""
    from diffusers import AutoencoderKL

    x = torch.tensor(images.transpose(0, 3, 1, 2)).float() / 255
    if isinstance(theirs, AutoencoderKL):
        return theirs.encode(2 * x - 1).latent_dist.parameters.numpy()
    return theirs.encode(x).latent.numpy()


@torch.inference_mode()
def draw(theirs, z: torch.Tensor) -> None:
    """Decodes latents."""
    theirs.decode(z)


def cachers(
    theirs, latents, images: np.ndarray, folder: pathlib.Path, options: argparse.Namespace
) -> tuple[Callable, Callable]:
    """What writes the latents of all images to files, here and there."""
    from dit_jax.data import ArrayRecords, Record, write_array_records
    from dit_jax.encoding.cache import Cache
    from dit_jax.encoding.writer import write_cache

    records = (Record(image=image, label=0) for image in images)
    write_array_records(str(folder / "images" / "train"), records)
    cache = Cache(latents, ArrayRecords(str(folder / "images"), classes=1))

    def ours() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            write_cache(cache, out, batch_size=options.batch)

    def other() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            for start in range(0, len(images), options.batch):
                for i, x in enumerate(encode(theirs, images[start : start + options.batch])):
                    np.save(f"{out}/{start + i}.npy", x)

    return ours, other


def in_turns(ours: Callable, other: Callable, count: int, repeats: int) -> dict:
    """Images a second of both, and how many times as fast ours is."""
    for function in (ours, other):
        function()  # Compiles, or finds its threads.
    speeds = {"ours": [], "diffusers": []}
    for _ in range(repeats):
        for name, function in (("ours", ours), ("diffusers", other)):
            begun = time.perf_counter()
            function()
            speeds[name].append(count / (time.perf_counter() - begun))
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["diffusers"])]
    return {**speeds, "ratio": statistics.median(ratios), "ratios": ratios}


if __name__ == "__main__":
    main()
