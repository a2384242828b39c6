import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.diffusion.respacing import respace
from dit_jax.errors import InputError

few = settings(deadline=None, derandomize=True, max_examples=40)


@few
@given(st.integers(2, 1200), st.data())
def test_kept_indices_are_spread_evenly_from_end_to_end(length, data):
    count = data.draw(st.integers(2, length))
    kept = respace(length, count)
    assert len(kept) == count
    assert (kept[0], kept[-1]) == (0, length - 1)
    gaps = np.diff(kept)
    # Each is the even position, rounded; positions may lie on a half.
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
    even = np.arange(count) * (length - 1) / (count - 1)
    assert np.abs(kept - even).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("length", "count"), [(10, 1), (10, 10), (1000, 1000)])
def test_extreme_counts(length, count):
    np.testing.assert_array_equal(respace(length, count), np.arange(count))


def test_halves_round_to_even():
    # The stride is 9 / 6 = 1.5.
    np.testing.assert_array_equal(respace(10, 7), [0, 2, 3, 4, 6, 8, 9])


@pytest.mark.parametrize("count", [21, 23, 251, 999])
def test_the_stride_is_summed_as_in_the_released_code(count):
    """For these counts (all odd) k * stride rounds otherwise."""
    position, expected = 0.0, []
    for _ in range(count):
        expected.append(round(position))
        position += 999 / (count - 1)
    assert expected != [round(k * 999 / (count - 1)) for k in range(count)]
    np.testing.assert_array_equal(respace(1000, count), expected)


def test_sections_are_spaced_each_by_itself():
    expected = [0, 3, 4, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(respace(10, "2,3,3"), expected)
    np.testing.assert_array_equal(respace(10, "1,1"), [0, 5])


@pytest.mark.parametrize("count", [1, 10, 50, 100, 250, 1000])
def test_ddim_spacing_has_a_constant_stride(count):
    kept = respace(1000, f"ddim{count}")
    assert len(kept) == count and kept[0] == 0
    assert len(set(np.diff(kept))) <= 1


SPECS = ["2", "7", "10", "50", "23", "250", "251", "999", "1000", "10,15,20", "1,1,1", "333,1,333"]


@pytest.mark.parametrize("spec", [*SPECS, "ddim10", "ddim25", "ddim50", "ddim250", "ddim1000"])
def test_equals_the_twin(spec):
    pytest.importorskip("torch")
    from tests.torch_twins.gaussian_diffusion import space_timesteps

    np.testing.assert_array_equal(respace(1000, spec), space_timesteps(1000, spec))


@pytest.mark.parametrize(
    "steps", [0, 1001, "ddim300", "ddim", "ddim0", "10,", "-5", "2.5", "", "x", "600,1"]
)
def test_an_impossible_spacing_is_an_error(steps):
    with pytest.raises(InputError) as error:
        respace(1000, steps)
    assert "\n" not in str(error.value)
