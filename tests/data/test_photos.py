import numpy as np
import pytest

from dit_jax.data import Photos
from dit_jax.errors import InputError

pytest.importorskip("skimage")


def test_records_are_parts_of_their_photographs():
    source = Photos(size=16, side=24, crops=10)
    records = source.open()
    assert (source.shape, source.num_classes, len(records)) == ((16, 16, 3), 8, 80)
    for index in range(16):
        record, photo = records[index], records.photos[index % 8]
        assert record["label"] == index % 8
        assert record["image"].shape == (16, 16, 3) and record["image"].dtype == np.uint8
        windows = np.lib.stride_tricks.sliding_window_view(photo, (16, 16, 3))[:, :, 0]
        assert (windows == record["image"]).all(axis=(2, 3, 4)).any()


def test_photographs_are_shrunk_and_coloured():
    photos = Photos(size=16, side=24, crops=10).open().photos
    assert {min(photo.shape[:2]) for photo in photos} == {24}
    grey = [bool((photo == photo[..., :1]).all()) for photo in photos]
    assert grey == 6 * [False] + 2 * [True]


def test_a_record_is_the_same_every_time():
    train, again = (Photos(crops=20).open() for _ in range(2))
    np.testing.assert_array_equal(train[5]["image"], again[5]["image"])
    before = train[5]["image"].copy()
    train[5]["image"][:] = 0
    np.testing.assert_array_equal(train[5]["image"], before)


def test_all_places_are_cut_and_none_for_both_splits():
    source = Photos(size=33, side=36, crops=400)  # 4 x 4 places in the first, which is square.
    train, test = (
        {records[i]["image"].tobytes() for i in range(0, len(records), 8)}
        for records in (source.open("train"), source.open("test"))
    )
    assert (len(train), len(test)) == (14, 2)
    assert not train & test


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"size": 64, "side": 64}, "cannot cut 64 pixels out of 64"), ({"crops": 5}, "crops is 5")],
)
def test_what_cannot_be_cut_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Photos(**fields)
