import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from dit_jax.errors import InputError
from dit_jax.parallel import mesh as mesh_module
from dit_jax.parallel.mesh import RECIPES, Parallel


@pytest.mark.parametrize(
    ("parallel", "shape"),
    [
        (Parallel(), (8, 1)),
        (Parallel(data=2, fsdp=4), (2, 4)),
        (Parallel(data=-1, fsdp=4), (2, 4)),
        (Parallel(data=2, fsdp=-1), (2, 4)),
        (Parallel(data=1, fsdp=8), (1, 8)),
    ],
)
def test_sizes(parallel, shape):
    mesh = parallel.mesh()
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == shape
    assert set(mesh.devices.ravel()) == set(jax.devices())
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_given_devices_are_used_in_their_order():
    devices = jax.devices()[2:6]
    mesh = Parallel(data=2, fsdp=2).mesh(devices)
    assert mesh.devices.ravel().tolist() == devices
    assert Parallel().mesh(devices[:1]).size == 1


class Chip:
    """A TPU device, as far as a mesh needs to know it."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, number, slice_index):
        self.id, self.slice_index, self.process_index = number, slice_index, 0
        self.coords = (number % 4, number // 4 % 4, 0)


def grid(parallel, slices):
    """Slices of 4 x 4 chips, in the order of a mesh."""
    chips = [Chip(n, s) for s in range(slices) for n in range(16 * s, 16 * s + 16)]
    shape = [getattr(parallel, axis) for axis in ("data", "fsdp", "expert", "sequence", "tensor")]
    return mesh_module.arrange(chips, shape)


def test_axes_lie_along_the_sides_of_a_slice():
    found = grid(Parallel(data=1, fsdp=4, tensor=4), 1).reshape(4, 4)
    for axis in (found, found.T):
        for group in axis:
            places = np.array([chip.coords for chip in group])
            assert sorted(len(set(column)) for column in places.T) == [1, 1, 4]


@pytest.mark.parametrize("parallel", [Parallel(data=2, fsdp=16), Parallel(data=1, fsdp=32)])
def test_slices_are_the_outermost(parallel):
    found = grid(parallel, 2).reshape(2, 16)
    assert [{chip.slice_index for chip in row} for row in found] == [{0}, {1}]


def test_what_slices_do_not_divide_is_refused():
    with pytest.raises(InputError, match="do not divide over 3 slices"):
        grid(Parallel(data=1, fsdp=16, tensor=3), 3)


def test_recipes_cover_any_devices():
    for name, recipe in RECIPES.items():
        assert recipe.mesh().size == 8, name
        if "+" not in name:
            assert recipe.mesh(jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    "parallel",
    [
        Parallel(data=3),
        Parallel(data=2, fsdp=2),
        Parallel(data=16),
        Parallel(data=-1, fsdp=3),
        Parallel(data=-1, fsdp=16),
        Parallel(data=-1, fsdp=-1),
        Parallel(data=0, fsdp=-1),
        Parallel(data=-2, fsdp=-4),
        Parallel(data=8, fsdp=0),
    ],
)
def test_sizes_that_do_not_cover_the_devices_are_an_error(parallel):
    sizes = rf"data={parallel.data} x fsdp={parallel.fsdp} x expert=1 x sequence=1 x tensor=1"
    message = f"{sizes} does not cover 8 devices"
    with pytest.raises(InputError, match=message) as error:
        parallel.mesh()
    assert "\n" not in str(error.value)
