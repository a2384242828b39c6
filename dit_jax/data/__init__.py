"""Data: sources of labelled images, and the loader that orders and batches them."""

from dit_jax.data.absent import Absent
from dit_jax.data.array_record import ArrayRecords, write_array_records
from dit_jax.data.digits import Digits
from dit_jax.data.idx import Idx
from dit_jax.data.image_folder import ImageFolder
from dit_jax.data.loader import DataWorkerError, Loader, batches, batches_in_order, order, to_device
from dit_jax.data.photos import Photos
from dit_jax.data.source import Record, Records, Source, Split
from dit_jax.data.tfds import TFDS

__all__ = [
    "TFDS",
    "Absent",
    "ArrayRecords",
    "DataWorkerError",
    "Digits",
    "Idx",
    "ImageFolder",
    "Loader",
    "Photos",
    "Record",
    "Records",
    "Source",
    "Split",
    "batches",
    "batches_in_order",
    "order",
    "to_device",
    "write_array_records",
]
