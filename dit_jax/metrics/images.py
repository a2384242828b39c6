"""Sets of images as the field hands them on: the .npz files of ADM's evaluator."""

import contextlib
import dataclasses
import hashlib
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from dit_jax.errors import InputError

# Statistics that ADM's references bring along: of pooled and of spatial features.
STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
# So many images tell whether their values are bytes.
_LOOKED_AT = 64


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An .npz file of images, of their statistics, or of both; images are read as they are needed.

    Attributes:
      path: the file.
      shape: [N, H, W, C] of its images; None where it has statistics alone.
      member: name of the images' array within the file.
      statistics: names of arrays of statistics -> their values, float64.
    """

    path: str
    shape: tuple[int, int, int, int] | None
    member: str | None
    statistics: dict[str, np.ndarray]

    @classmethod
    def open(cls, path: str) -> "ImageFile":
        """Opens a file and looks whether it is what the evaluator takes.

        Raises:
          InputError: it is not there, it is broken, or it holds something else.
        """
        if not pathlib.Path(path).is_file():
            raise InputError(f"no file '{path}': give an .npz of uint8 images, as ADM's are")
        with _readable(path), zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            names = [name.removesuffix(".npy") for name in members]
            known = [name for pair in STATISTICS.values() for name in pair if name in names]
            statistics = {name: _whole(archive, name) for name in known}
            others = [name for name in names if name not in known]
            if not names:
                raise InputError(f"'{path}' holds no arrays: give an .npz, as ADM's are")
            if not others:
                return cls(path, None, None, _checked(path, statistics))
            member = "arr_0" if "arr_0" in others else others[0]
            with archive.open(f"{member}.npy") as file:
                shape, dtype = _header(file)
                _check_array(path, member, shape, dtype)
        return cls(path, shape, member, _checked(path, statistics))

    def read(self, stop: int | None = None) -> np.ndarray:
        """Reads the first `stop` images, or all of them, uint8 [N, H, W, C]."""
        count = min(self.shape[0], self.shape[0] if stop is None else stop)
        return next(self.batches(0, count, max(count, 1)))

    def batches(self, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
        """Reads images `start` to `stop`, uint8 [b, H, W, C] with b at most `size`.

        Raises:
          InputError: the file is broken.
        """
        with (
            _readable(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.member}.npy") as file,
        ):
            _header(file)
            file.seek(start * int(np.prod(self.shape[1:])), 1)
            for first in range(start, stop, size):
                yield _rows(file, min(size, stop - first), self.shape[1:])

    def checksum(self) -> str:
        """SHA-256 of the file, by which a report names it."""
        with pathlib.Path(self.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def check_bytes(images: ImageFile) -> None:
    """Raises InputError where the numbers of images do not run from 0 to 255."""
    if images.read(_LOOKED_AT).max() <= 1:
        raise InputError(
            f"no value of the first images of '{images.path}' is above 1: bytes run from 0 to 255, "
            f"so scale the images before they are made bytes"
        )


def check_comparable(shape: tuple[int, int, int, int], reference: ImageFile) -> None:
    """Raises InputError where images [N, H, W, C] are of another size than a reference's."""
    if reference.shape is not None and shape[1:3] != reference.shape[1:3]:
        sizes = ["x".join(map(str, each[1:3])) for each in (shape, reference.shape)]
        raise InputError(
            f"the images are of {sizes[0]}, and those of the reference '{reference.path}' of "
            f"{sizes[1]}: take the reference of that size"
        )


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"'{path}' cannot be read ({error or type(error).__name__}): it is no .npz file, or "
            f"was not copied to its end"
        ) from error


def _header(file) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the head of an .npy file: shape and dtype."""
    version = np.lib.format.read_magic(file)
    reader = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if reader is None:
        raise ValueError(f"an .npy file of version {version}")
    shape, columns_first, dtype = reader(file)
    if columns_first and len(shape) > 1:
        raise ValueError("its array is in Fortran's order: save np.ascontiguousarray of it")
    return shape, dtype


def _rows(file, count: int, shape: tuple[int, ...]) -> np.ndarray:
    wanted = count * int(np.prod(shape))
    data = file.read(wanted)
    if len(data) < wanted:
        raise EOFError("it ends early")
    return np.frombuffer(data, np.uint8).reshape(count, *shape)


def _whole(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file).astype(np.float64)


def _check_array(path: str, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise InputError(f"'{path}' holds images of mixed sizes: cut or resize them to one size")
    if len(shape) != 4:
        raise InputError(
            f"array '{name}' of '{path}' has shape {shape}: images are [N, H, W, C], uint8, and "
            f"named arr_0 where there are other arrays"
        )
    if dtype != np.uint8:
        raise InputError(
            f"'{path}' holds {dtype} numbers: metrics are of bytes, so quantise the images first "
            f"(those in [-1, 1] by truncating 127.5 x + 128)"
        )
    if shape[-1] not in (1, 3) and shape[1] in (1, 3):
        raise InputError(
            f"images of '{path}' have shape {shape[1:]}, channels first: transpose them to H, W, C"
        )
    if shape[-1] not in (1, 3):
        raise InputError(f"images of '{path}' have {shape[-1]} channels: give RGB or grey ones")
    if shape[0] < 1:
        raise InputError(f"'{path}' holds no image")


def _checked(path: str, statistics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for mean, covariance in STATISTICS.values():
        if (mean in statistics) != (covariance in statistics):
            raise InputError(f"'{path}' has one of {mean} and {covariance}: it must have both")
        if mean in statistics:
            if not all(np.isfinite(statistics[name]).all() for name in (mean, covariance)):
                raise InputError(f"{mean} and {covariance} of '{path}' are not all finite")
            width = len(statistics[mean].ravel())
            if statistics[covariance].shape != (width, width):
                raise InputError(
                    f"'{path}' has {mean} of {width} numbers and {covariance} of shape "
                    f"{statistics[covariance].shape}: they are not of the same features"
                )
    return statistics
