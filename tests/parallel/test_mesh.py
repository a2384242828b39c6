import jax
import pytest
from jax.sharding import AxisType

from dit_jax.errors import InputError
from dit_jax.parallel.mesh import Parallel


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
    sizes = rf"data={parallel.data} x fsdp={parallel.fsdp} x expert=1 x tensor=1"
    message = f"{sizes} does not cover 8 devices"
    with pytest.raises(InputError, match=message) as error:
        parallel.mesh()
    assert "\n" not in str(error.value)
