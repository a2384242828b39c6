"""A folder of image files, with a subfolder per class."""

import dataclasses
import logging
import os
import pathlib
from typing import Literal

from dit_jax.data.source import Record, Source, Split
from dit_jax.data.transforms import adm_center_crop, decode_rgb
from dit_jax.errors import InputError

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


@dataclasses.dataclass(frozen=True)
class ImageFolder(Source):
    """Image files below a folder, cropped as ADM does to [size, size, 3] uint8.

    Labels are the positions of the class subfolders in sorted order. A folder whose images lie
    directly in it has no labels. If the folder has subfolders `train` and `test` (or `val`), these
    are the splits; otherwise the same images serve as both.

    Attributes:
      path: the folder.
      size: height and width delivered.
      on_error: what an unreadable image does: `stop`, naming the file; or `skip`, which warns and
        delivers the next readable image instead.
    """

    path: str
    size: int = 256
    on_error: Literal["stop", "skip"] = "stop"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 3)

    @property
    def num_classes(self) -> int:
        """Number of class subfolders.

        Raises:
          InputError: the folder is missing or empty.
        """
        return len(_classes(_split_folder(self.path, "train")))

    def open(self, split: Split = "train") -> "ImageFiles":
        """Lists the files of one split; images are read when asked for.

        Raises:
          InputError: the folder is missing, holds no images, or has an empty class subfolder or
            (in the test split) one that training lacks.
        """
        folder = _split_folder(self.path, split)
        classes = _classes(_split_folder(self.path, "train"))
        if not classes:
            files = _images(folder)
            return ImageFiles(str(folder), files, (0,) * len(files), self.size, self.on_error)
        unknown = set(_classes(folder)) - set(classes)
        if unknown:
            raise InputError(
                f"{folder / min(unknown)} is no class of the training split: a test split may"
                " only have classes that are trained on"
            )
        labelled = [
            (file, classes.index(name))
            for name in _classes(folder)
            for file in _images(folder, name)
        ]
        files, labels = zip(*labelled)
        return ImageFiles(str(folder), files, labels, self.size, self.on_error)


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The records of an image folder: paths relative to `folder`, and their labels."""

    folder: str
    files: tuple[str, ...]
    labels: tuple[int, ...]
    size: int
    on_error: Literal["stop", "skip"]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        for candidate in range(index, index + len(self)):
            try:
                return self._read(candidate % len(self))
            except InputError as error:
                if self.on_error == "stop":
                    raise
                logging.getLogger(__name__).warning("skipped: %s", error)
        raise InputError(f"none of the {len(self)} images in {self.folder} can be read")

    def _read(self, index: int) -> Record:
        path = os.path.join(self.folder, self.files[index])
        try:
            with open(path, "rb") as file:
                encoded = file.read()
        except OSError as error:
            raise InputError(f"cannot read {path} ({error.strerror})") from error
        image = adm_center_crop(decode_rgb(encoded, path), self.size)
        return Record(image=image, label=self.labels[index])


def _split_folder(path: str, split: Split) -> pathlib.Path:
    """The folder of a split: `path` itself unless it has a folder for each of both splits."""
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise InputError(f"no folder {root}: give the folder that holds the images")
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not tests or not (root / "train").is_dir():
        return root
    return root / "train" if split == "train" else tests[0]


def _classes(folder: pathlib.Path) -> list[str]:
    """Sorted class subfolders of a split, none if its images have no labels."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    names = sorted(entry.name for entry in entries if entry.is_dir())
    loose = sorted(entry.name for entry in entries if _is_image(entry.name))
    if names and loose:
        raise InputError(
            f"{folder} holds both subfolders ({names[0]}) and images ({loose[0]}): use one"
            " subfolder per class, or images alone"
        )
    if not names and not loose:
        raise InputError(
            f"{folder} holds no images: expected {', '.join(_EXTENSIONS)} files, directly or in"
            " one subfolder per class"
        )
    return names


def _images(folder: pathlib.Path, name: str = ".") -> list[str]:
    """Sorted images anywhere below folder/name, relative to folder."""
    files = [
        os.path.relpath(os.path.join(parent, file), folder)
        for parent, _, children in os.walk(folder / name)
        for file in children
        if _is_image(file)
    ]
    if not files:
        raise InputError(f"the class subfolder {folder / name} holds no images: fill or remove it")
    return sorted(files)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_EXTENSIONS) and not name.startswith(".")
