"""Every family that has a PyTorch twin: equal outputs, equal layers, and back bit for bit."""

import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import DDPM, Euler, Gaussian, Sampling
from dit_jax.interop.layouts import LAYOUTS
from dit_jax.interop.layouts.dit import found_dit
from dit_jax.layers.context import Context
from dit_jax.layers.norm import RMSNorm
from dit_jax.layers.rope import AxialRope
from dit_jax.models import promoe as promoe_model
from dit_jax.moe.routers import ProMoEExpertChoiceRouter
from dit_jax.presets import find_preset

torch = pytest.importorskip("torch")

from tests.interop import parity  # noqa: E402
from tests.torch_twins import ddt, dit, dit_dh, dit_moe, lightning_dit, promoe, repa  # noqa: E402

SIZES = {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 128, "num_heads": 2}
PATCHES = {"input_size": 4, "patch_size": 1, "in_channels": 8, "hidden_size": 128, "num_heads": 2}
INDICES = np.array([3.0, 500.0, 999.0], np.float32)
TIMES = np.array([0.02, 0.5, 0.97], np.float32)

# Layout, twin, times in the model's clock, and the stacks its blocks became.
FAMILIES = {
    "dit": (lambda: dit.DiT(**SIZES, depth=3, num_classes=10), INDICES, ["blocks"]),
    "sit": (lambda: dit.SiT(**SIZES, depth=3, num_classes=10), TIMES, ["blocks"]),
    "repa": (
        lambda: repa.SiT(**SIZES, depth=3, num_classes=10, encoder_depth=2, projector_size=16),
        TIMES,
        ["blocks"],
    ),
    "lightning-dit": (
        lambda: lightning_dit.LightningDiT(**PATCHES, depth=3, num_classes=10),
        TIMES,
        ["blocks"],
    ),
    "lightning-dit with qk-norm": (
        lambda: lightning_dit.LightningDiT(**PATCHES, depth=3, num_classes=10, qk_norm=True),
        TIMES,
        ["blocks"],
    ),
    "ddt": (
        lambda: ddt.DDT(
            **SIZES | {"input_size": 32, "patch_size": 8},
            encoder_depth=8,
            decoder_depth=4,
            num_classes=10,
        ),
        TIMES,
        ["encoder", "decoder"],
    ),
    "dit-dh": (
        lambda: dit_dh.DiTwDDTHead(4, 12, (32, 48), (3, 2), (4, 2), num_classes=10),
        TIMES,
        ["encoder", "decoder"],
    ),
    "dit-moe": (
        lambda: dit_moe.DiTMoE(**SIZES, depth=3, num_classes=10, num_experts=4),
        INDICES,
        ["blocks"],
    ),
    "dit-moe with qk-norm": (
        lambda: dit_moe.DiTMoE(**SIZES, depth=3, num_classes=10, num_experts=4, attention="flash"),
        TIMES,
        ["blocks"],
    ),
    "promoe": (
        lambda: promoe.ProMoE(**SIZES, depth=4, num_classes=10, num_experts=4),
        1000 * TIMES,
        ["blocks"],
    ),
    "promoe with qk-norm": (
        lambda: promoe.ProMoE(**SIZES, depth=4, num_classes=10, num_experts=4, qk_norm=True),
        1000 * TIMES,
        ["blocks"],
    ),
}


def randomised(twin):
    """A twin none of whose parts is idle."""
    moe = isinstance(twin, dit_moe.DiTMoE | promoe.ProMoE)
    return (dit_moe if moe else ddt).randomise_(twin, seed=0).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    make, times, stacks = FAMILIES[request.param]
    twin = randomised(make())
    folder = tmp_path_factory.mktemp("family")
    layout = request.param.split(" ")[0]
    return twin, parity.converted(twin, folder, layout=layout), folder, times, stacks


def test_output_and_gradient_are_the_twins(family):
    twin, run, _, times, _ = family
    output, gradient = parity.errors(run, twin, times)
    assert output <= 1e-5
    assert gradient <= 1e-4


def test_every_layer_is_the_twins(family):
    twin, run, _, times, stacks = family
    side = run.shape[0] // run.model.patch

    def context(vector):
        everyone = jnp.ones(len(vector), bool)
        return Context(vector, jnp.asarray(times), vector, everyone, (side, side), False)

    parity.check_layers(run, twin, stacks, context, times)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_there_and_back_is_bit_equal(family, suffix):
    twin, _, folder, _, _ = family
    parity.check_round_trip(folder, twin, f"back{suffix}")


def test_the_family_is_recognised_where_keys_tell(family, request):
    twin, *_ = family
    name = request.node.callspec.params["family"].split(" ")[0]
    shapes = {key: tuple(value.shape) for key, value in twin.state_dict().items()}
    fitting = [layout.name for layout in LAYOUTS if layout.matches(shapes)]
    # DiT and SiT have the same keys; nothing else has.
    assert fitting == (["dit", "sit"] if name in ("dit", "sit") else [name])


@pytest.mark.parametrize(
    "changes",
    [{"rope": AxialRope()}, {"norm": "rms"}, {"qk_norm": RMSNorm()}],
    ids=["rope", "norm", "qk-norm"],
)
def test_what_a_layout_has_no_place_for_is_not_written_in_it(changes):
    model = find_preset("DiT-S/8").model.clone(**changes)
    found = found_dit(model, (32, 32, 4), Gaussian(), Sampling(DDPM()))
    assert not [layout.name for layout in LAYOUTS if layout.exports(found)]


def test_choices_that_are_in_no_file_are_not_written():
    tokens = find_preset("ProMoE-S")
    experts = promoe_model(2, 384, 6, router=ProMoEExpertChoiceRouter())
    names = {}
    for model in (tokens.model, experts):
        found = found_dit(model, (32, 32, 4), tokens.process, Sampling(Euler(steps=2)))
        names[model] = [layout.name for layout in LAYOUTS if layout.exports(found)]
    assert names == {tokens.model: ["promoe"], experts: []}
