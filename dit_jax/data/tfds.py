"""Data sets of TensorFlow Datasets, read at random without TensorFlow."""

import dataclasses
from collections.abc import Sequence

from dit_jax.data.source import Record, Source, Split
from dit_jax.data.transforms import adm_center_crop, decode_rgb
from dit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TFDS(Source):
    """A prepared data set of TensorFlow Datasets, cropped as ADM does to [size, size, 3] uint8.

    It must have been prepared as ArrayRecord (`tfds build NAME --file_format=array_record`), the
    format that can be read at random; preparing may need TensorFlow, reading does not. The test
    split is the set's `validation`, or `test` if it has none. Sets without a `label` feature have
    no labels.

    Attributes:
      name: as in tfds.load, such as `imagenet2012` or `cifar10:3.0.2`.
      size: height and width delivered.
      data_dir: folder of the prepared sets, `~/tensorflow_datasets` by default; may be gs://.
    """

    name: str
    size: int = 256
    data_dir: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 3)

    @property
    def num_classes(self) -> int:
        """Number of labels of the set.

        Raises:
          InputError: tensorflow-datasets or the set is missing, or the set has no images.
        """
        features = self._builder().info.features
        return features["label"].num_classes if "label" in features else 0

    def open(self, split: Split = "train") -> "TFDSRecords":
        """Opens one split.

        Raises:
          InputError: tensorflow-datasets, the set or the split is missing, or the set was not
            prepared as ArrayRecord.
        """
        builder = self._builder()
        wanted = ("train",) if split == "train" else ("validation", "test")
        found = [name for name in wanted if name in builder.info.splits]
        if not found:
            raise InputError(
                f"the TFDS set {self.name} has no {' or '.join(wanted)} split, only"
                f" {', '.join(builder.info.splits)}"
            )
        import tensorflow_datasets as tfds

        try:
            # Pillow decodes, so that the crop starts from the pixels that ADM started from.
            encoded = builder.as_data_source(
                split=found[0], decoders={"image": tfds.decode.SkipDecoding()}
            )
        except NotImplementedError as error:
            raise InputError(
                f"the TFDS set {self.name} was not prepared for random access: prepare it with"
                f" `tfds build {self.name} --file_format=array_record`"
            ) from error
        return TFDSRecords(encoded, f"{self.name}/{found[0]}", self.size)

    def _builder(self):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise InputError(
                'TFDS needs tensorflow-datasets: pip install "dit_jax[tfds]"'
            ) from error
        try:
            builder = tfds.builder(self.name, data_dir=self.data_dir)
        except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"no TFDS set {self.name} in {_where(self)} ({reason})") from error
        if not builder.is_prepared():
            raise InputError(
                f"the TFDS set {self.name} is not prepared in {_where(self)}: run"
                f" `tfds build {self.name} --file_format=array_record`"
            )
        if "image" not in builder.info.features:
            raise InputError(f"the TFDS set {self.name} has no `image` feature")
        return builder


@dataclasses.dataclass(frozen=True)
class TFDSRecords:
    """A split of a TFDS set whose images are still encoded."""

    encoded: Sequence
    name: str
    size: int

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Record:
        example = self.encoded[index]
        image = decode_rgb(example["image"], f"{index} of {self.name}")
        return Record(image=adm_center_crop(image, self.size), label=int(example.get("label", 0)))


def _where(source: TFDS) -> str:
    return source.data_dir or "~/tensorflow_datasets"
