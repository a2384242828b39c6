"""Is dit_jax's loader as fast as PyTorch's?

Both read (a) a folder of JPEGs, cropped as ADM does to 256 pixels, and (b) float32 latents
[32, 32, 8]: ours from ArrayRecord files, PyTorch's from one .npy file each, as fast-DiT keeps them.
Images a second, in turns, with 0 and 2 reader processes, starting and ending them not counted.
With 0, PyTorch reads when asked; ours reads ahead in threads, as it does unless told otherwise.

    python benchmarks/loader.py [--files 400] [--batches 60] [--repeats 5]

Needs torch (CPU) and array-record.
"""

import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import report
import torch
from PIL import Image

import dit_jax.data

LATENT_SHAPE = (32, 32, 8)


def main() -> None:
    """Times both loaders on both kinds of data, with 0 and 2 workers."""
    parser = report.parser(__doc__)
    parser.add_argument("--files", type=int, default=400, help="JPEGs; ten times as many latents")
    parser.add_argument("--batches", type=int, default=60, help="batches timed")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_photos(root / "photos", options.files)
        write_latents(root / "npy", root / "array_record", 10 * options.files)
        photos = dit_jax.data.ImageFolder(str(root / "photos"), size=256).open()
        latents = dit_jax.data.ArrayRecords(str(root / "array_record"), classes=0).open()
        results = [
            compare(name, records, dataset, batch_size, workers, options)
            for name, records, dataset, batch_size in (
                ("jpeg_folder", photos, TorchPhotos(root / "photos"), 32),
                ("latents", latents, TorchLatents(root / "npy"), 256),
            )
            for workers in (0, 2)
        ]
    report.save("loader", __doc__, results, options.out)


def compare(name, records, dataset, batch_size: int, workers: int, options) -> dict:
    """Times both loaders alternately, so that a busy machine disturbs both alike."""
    # Neither may run out of work while it is timed, for then reading ahead would be free.
    steps = options.batches + 40
    speeds = {"ours": [], "torch": []}
    for _ in range(options.repeats):
        ours = dit_jax.data.batches(
            records,
            batch_size=batch_size,
            start=0,
            steps=steps,
            seed=0,
            num_classes=0,
            loader=dit_jax.data.Loader(workers=workers),
        )
        theirs = torch.utils.data.DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=torch.utils.data.RandomSampler(
                dataset, replacement=True, num_samples=steps * batch_size
            ),
            num_workers=workers,
        )
        speeds["ours"].append(speed(ours, options.batches) * batch_size)
        ours.close()
        speeds["torch"].append(speed(iter(theirs), options.batches) * batch_size)
    result = {"data": name, "workers": workers, "batch_size": batch_size}
    for loader, values in speeds.items():
        result[loader] = {
            "images_per_second": round(statistics.median(values), 1),
            "lowest": round(min(values), 1),
            "highest": round(max(values), 1),
        }
    ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds["torch"])]
    result["ours_over_torch"] = round(statistics.median(ratios), 3)
    print(json.dumps(result), flush=True)
    return result


def speed(batches: Iterator, count: int) -> float:
    """Batches a second, after ten that let the processes start."""
    for _ in itertools.islice(batches, 10):
        pass
    begin = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return count / (time.perf_counter() - begin)


class TorchPhotos(torch.utils.data.Dataset):
    """The same crop of the same files, as DiT's train.py reads them."""

    def __init__(self, folder: pathlib.Path):
        self.files = sorted(str(file) for file in folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with open(self.files[index], "rb") as file:
            image = center_crop(Image.open(file).convert("RGB"), 256)
        return torch.from_numpy(image), 0


class TorchLatents(torch.utils.data.Dataset):
    """One .npy file a latent and one a label, as fast-DiT's CustomDataset reads them."""

    def __init__(self, folder: pathlib.Path):
        self.folder = str(folder)
        self.names = sorted(os.listdir(folder / "features"))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        features = np.load(f"{self.folder}/features/{self.names[index]}")
        labels = np.load(f"{self.folder}/labels/{self.names[index]}")
        return torch.from_numpy(features), torch.from_numpy(labels)


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """center_crop_arr of DiT's train.py."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize(
        tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC
    )
    pixels = np.array(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def write_photos(folder: pathlib.Path, count: int) -> None:
    """JPEGs of 500x375 pixels, the usual size in ImageNet: a gradient under noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:375, 0:500]
    for i in range(count):
        slope = rng.uniform(-0.3, 0.3, (2, 3))
        pixels = 128 + y[..., None] * slope[0] + x[..., None] * slope[1]
        pixels = pixels + rng.normal(0, 12, (375, 500, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg")


def write_latents(npy: pathlib.Path, array_record: pathlib.Path, count: int) -> None:
    """The same latents in both forms."""
    for name in ("features", "labels"):
        (npy / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal(LATENT_SHAPE, np.float32) for _ in range(count)]
    for i, latent in enumerate(latents):
        np.save(npy / "features" / f"{i}.npy", latent)
        np.save(npy / "labels" / f"{i}.npy", np.int64(0))
    dit_jax.data.write_array_records(
        str(array_record), ({"image": latent, "label": 0} for latent in latents)
    )


if __name__ == "__main__":
    main()
