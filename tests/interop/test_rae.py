"""The authors' files of representation autoencoders, and whole ones made of parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dit_jax
from dit_jax.checkpoint import Checkpoints
from dit_jax.data import Absent
from dit_jax.diffusion import Euler
from dit_jax.errors import InputError
from dit_jax.experiment import RunFolder, Training
from dit_jax.interop.commands import RAE as Join
from dit_jax.interop.convert import convert_from_torch, convert_to_torch
from dit_jax.interop.layout import Found
from dit_jax.interop.layouts import LAYOUTS, choose_export, find_layout
from dit_jax.interop.rae import latents_of
from dit_jax.interop.store import Converted
from dit_jax.latents import RAE
from dit_jax.latents.rae import Normalization, ViTDecoder
from dit_jax.latents.rae.encoders import Perceptron
from dit_jax.storage.weights import save_weights
from dit_jax.training.reconstruction.experiment import DecoderExperiment
from dit_jax.training.state import TrainState
from dit_jax.weights import load_weights

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tests.latents.rae import encoder_helpers  # noqa: E402
from tests.latents.rae.rae_helpers import (  # noqa: E402
    assert_equal,
    images,
    make_parts,
    make_statistics,
    noise,
    read_by_diffusers,
    shapes_of,
)
from tests.torch_twins import dit_dh  # noqa: E402
from tests.torch_twins import rae as twins  # noqa: E402
from tests.torch_twins.to_jax import to_nchw, to_nhwc  # noqa: E402

FILES = {"decoder": "decoder.pt", "statistics": "stat.pt"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder of the authors' parts, and the same ones converted."""
    folder = tmp_path_factory.mktemp("parts")
    make_parts(folder)
    return folder


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("part", FILES)
def test_the_authors_files_go_there_and_back_bit_for_bit(parts, tmp_path, part, suffix):
    back = tmp_path / f"back{suffix}"
    convert_to_torch(str(parts / part), str(back))
    reader = load_file if suffix == ".safetensors" else torch.load
    assert_equal(torch.load(parts / FILES[part]), reader(back))


@pytest.mark.parametrize("part", FILES)
def test_the_authors_files_are_recognised_by_their_layout_alone(parts, part):
    shapes = shapes_of(torch.load(parts / FILES[part]))
    assert [x.name for x in LAYOUTS if x.matches(shapes)] == [f"rae-{part}"]
    found = Converted(str(parts / part), ema=None).found
    assert choose_export(Found(found.module, found.inputs), None).name == f"rae-{part}"


def test_the_decoder_is_read_off_its_tensors(parts):
    found = Converted(str(parts / "decoder"), ema=None).found
    ffn = Perceptron(96, initial="torch")
    assert found.module == ViTDecoder(patch=4, hidden=128, depth=2, heads=2, ffn=ffn)
    assert found.inputs[1].shape == (1, 3, 3, 32)


@pytest.mark.parametrize(("hidden", "heads"), [(64, 1), (768, 12), (1024, 16), (1152, 16)])
def test_the_width_tells_the_heads(parts, hidden, heads):
    shapes = {
        key: tuple(hidden if length == 128 else length for length in shape)
        for key, shape in shapes_of(torch.load(parts / "decoder.pt")).items()
    }
    assert find_layout("rae-decoder").describe(shapes, {}).module.heads == heads


def test_a_decoder_trained_here_is_written_with_its_table_of_positions(parts):
    found = Converted(str(parts / "decoder"), ema=None).found
    entries = find_layout("rae-decoder").entries(Found(found.module, found.inputs))
    (table,) = (entry.value for entry in entries if getattr(entry, "key", "").endswith("embed"))
    expected = torch.load(parts / "decoder.pt")["decoder_pos_embed"].numpy()
    assert not table[:, 0].any()
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_a_decoder_with_trained_positions_is_refused(parts, tmp_path):
    tensors = torch.load(parts / "decoder.pt")
    tensors["decoder_pos_embed"][0, 3, 7] += 1e-3
    torch.save(tensors, tmp_path / "decoder.pt")
    with pytest.raises(InputError, match="decoder_pos_embed is not what this model computes"):
        convert_from_torch(str(tmp_path / "decoder.pt"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_statistics_are_those_of_the_latents_they_fit(parts):
    found = Converted(str(parts / "statistics"), ema=None).found
    assert found.module == Normalization(kept="variance")
    assert found.inputs[1].shape == (1, 3, 3, 32)
    params = load_weights(str(parts / "statistics"), found.abstract())
    expected = {key: value.permute(1, 2, 0) for key, value in make_statistics().items()}
    np.testing.assert_array_equal(params["mean"], expected["mean"])
    np.testing.assert_array_equal(params["variance"], expected["var"])


@pytest.mark.parametrize(
    "module",
    [
        ViTDecoder(eps=1e-6),
        ViTDecoder(channels=4),
        ViTDecoder(ffn=Perceptron(approximate=True)),
        Normalization(kept="deviation"),
    ],
)
def test_what_the_authors_code_does_not_build_is_not_written(module):
    with pytest.raises(InputError, match="no layout is known for this"):
        choose_export(Found(module, (None, noise((1, 3, 3, 32)))), None)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Parts such as diffusers builds, from files of their own, and the whole that they make."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("joined")
    encoder = encoder_helpers.dinov2_with_registers(
        hidden_size=128, patch_size=14, image_size=518, num_register_tokens=4
    )
    encoder_helpers.randomised(encoder).save_pretrained(folder / "dinov2")
    decoder = twins.GeneralDecoder(128, 128, 2, 2, 96, patch_size=4)
    torch.save(twins.randomise_(decoder, seed=0).state_dict(), folder / "decoder.pt")
    torch.save(make_statistics(128, 16), folder / "stat.pt")
    sources = {"encoder": "dinov2", "decoder": "decoder.pt", "statistics": "stat.pt"}
    for part, source in sources.items():
        convert_from_torch(str(folder / source), str(folder / part))
    Join(str(folder / "whole"), **{part: str(folder / part) for part in sources})()
    return folder


def test_a_joined_folder_is_what_diffusers_loads(joined, tmp_path):
    convert_to_torch(str(joined / "whole"), str(tmp_path / "theirs"), layout="diffusers-rae")
    twin = read_by_diffusers(tmp_path / "theirs")
    space = latents_of(str(joined / "whole"))
    pictures = images(64, count=1)
    x = jax.jit(space.encode)(space.load(), jax.random.key(0), pictures)
    drawn = jax.jit(space.decode)(space.load_decoder(), x)
    twin.double()
    with torch.no_grad():
        latents = twin.encode(torch.tensor(to_nchw(pictures / 255))).latent
        theirs = twin.decode(torch.tensor(to_nchw(x)).double()).sample
    assert encoder_helpers.error(x, to_nhwc(latents)) <= 1e-5
    assert encoder_helpers.error(drawn, 2 * to_nhwc(theirs) - 1) <= 1e-5


def test_joining_makes_deviations_of_variances_as_diffusers_conversion_does(joined):
    """Which moves latents by what diffusers adds to its deviations, and by nothing else."""
    whole = latents_of(str(joined / "whole"))
    parts = [str(joined / part) for part in ("decoder", "statistics")]
    apart = dataclasses.replace(
        whole,
        encoder_weights=str(joined / "encoder"),
        decoder_weights=parts[0],
        statistics=parts[1],
        normalization=Normalization(),
    )
    for one, other in ((whole.load(), apart.load()), (whole.load_decoder(), apart.load_decoder())):
        statistics = one.pop("statistics"), other.pop("statistics")
        jax.tree.map(np.testing.assert_array_equal, one, other)
    deviation = np.sqrt(statistics[1]["variance"] + 1e-5)
    np.testing.assert_allclose(statistics[0]["deviation"], deviation, rtol=1e-6)
    x = noise((1, 16, 16, 128))
    ours, theirs = (
        space.normalization.apply({"params": params}, x)
        for space, params in zip((whole, apart), statistics)
    )
    np.testing.assert_allclose(ours * (1 + 1e-5 / deviation), theirs, rtol=1e-5, atol=1e-6)


def test_where_a_whole_comes_from_is_kept(joined, tmp_path):
    convert_to_torch(str(joined / "whole"), str(tmp_path / "whole.safetensors"))
    header = Converted(str(joined / "whole"), ema=None).source
    assert header.file == "dinov2, decoder.pt, stat.pt"
    assert header.licence == "Apache-2.0, MIT, MIT"
    assert len(header.sha256.split(", ")) == 3
    back = load_file(tmp_path / "whole.safetensors")
    assert torch.equal(
        back["encoder.embeddings.mask_token"],
        load_file(joined / "dinov2" / "model.safetensors")["embeddings.mask_token"],
    )


def test_parts_that_do_not_fit_are_named(joined, parts, tmp_path):
    good = {part: str(joined / part) for part in ("encoder", "decoder", "statistics")}
    other = {part: str(parts / part) for part in good}
    for changes, message in [
        ({"encoder": good["decoder"]}, "--encoder .* holds a ViTDecoder, not a VisionEncoder"),
        ({"encoder": other["encoder"]}, "takes tokens of 128 channels, and the encoder's have 32"),
        ({"statistics": other["statistics"]}, r"of shape \(3, 3, 32\), and the decoder takes"),
    ]:
        with pytest.raises(InputError, match=message):
            Join(str(tmp_path / "out"), **good | changes)()
    with pytest.raises(InputError, match="is there already"):
        Join(str(joined / "whole"), **good)()
    assert not list(tmp_path.iterdir())


def test_parts_that_were_made_here_go_out_and_are_joined(parts, tmp_path):
    """A decoder from its training run, its average first, and statistics that were measured."""
    run, measured = str(tmp_path / "run"), str(tmp_path / "measured")
    decoder = Converted(str(parts / "decoder"), ema=None).found.module
    encoder = Converted(str(parts / "encoder"), ema=None).found.module
    experiment = DecoderExperiment(
        latents=RAE(encoder, decoder=decoder),
        data=Absent((12, 12, 3), 0),
        run=RunFolder(run),
        training=Training(ema=(0.9,)),
    )
    params = load_weights(str(parts / "decoder"), None)
    average = {"decoder": jax.tree.map(lambda leaf: 2 * leaf, params)}
    trained = {"decoder": params, "discriminator": jnp.ones(2)}
    state = TrainState(jnp.int32(3), trained, {"count": jnp.int32(3)}, {"0.9": average})
    checkpoints = Checkpoints(run)
    checkpoints.save(state, experiment)
    checkpoints.close()
    statistics = load_weights(str(parts / "statistics"), None)
    save_weights(measured, Normalization(), (3, 3, 32), statistics)
    convert_to_torch(run, str(tmp_path / "average.pt"))
    convert_to_torch(run, str(tmp_path / "raw.pt"), ema=None)
    convert_to_torch(measured, str(tmp_path / "stat.pt"))
    theirs, average, raw = map(
        torch.load, (parts / "decoder.pt", tmp_path / "average.pt", tmp_path / "raw.pt")
    )
    fixed = {"decoder_pos_embed": average.pop("decoder_pos_embed")}
    torch.testing.assert_close(raw, theirs, rtol=0, atol=1e-6)
    assert_equal(average | fixed, {key: 2 * raw[key] for key in average} | fixed)
    assert_equal(torch.load(tmp_path / "stat.pt"), torch.load(parts / "stat.pt"))
    Join(str(tmp_path / "whole"), str(parts / "encoder"), run, measured)()
    space = latents_of(str(tmp_path / "whole"))
    drawn = space.load_decoder()["decoder"]
    jax.tree.map(lambda one, two: np.testing.assert_array_equal(one, 2 * two), drawn, params)


def test_what_diffusers_would_compute_otherwise_is_no_folder_for_it(joined, parts, tmp_path):
    """Positions on another grid, and encoders of which it is told too little."""
    small = str(tmp_path / "small")
    Join(small, **{part: str(parts / part) for part in ("encoder", "decoder", "statistics")})()
    with pytest.raises(InputError, match="for grids of 16x16 alone"):
        convert_to_torch(small, str(tmp_path / "theirs"))
    convert_to_torch(small, str(tmp_path / "theirs.safetensors"))
    found = Converted(str(joined / "whole"), ema=None).found
    few = found.module.clone(encoder=found.module.encoder.clone(registers=3))
    with pytest.raises(InputError, match=r"another encoder \(registers: 4 -> 3\)"):
        find_layout("diffusers-rae").write_config(dataclasses.replace(found, module=few), None)
    assert not (tmp_path / "theirs").exists()


def test_a_converted_model_samples_images_through_its_autoencoder(parts, tmp_path):
    small = str(tmp_path / "small")
    Join(small, **{part: str(parts / part) for part in ("encoder", "decoder", "statistics")})()
    twin = dit_dh.DiTwDDTHead(3, 32, (32, 48), (1, 1), (4, 2), num_classes=10)
    torch.save(twin.state_dict(), tmp_path / "model.pt")
    out = str(tmp_path / "run")
    convert_from_torch(str(tmp_path / "model.pt"), out, rae=small)
    run = dit_jax.load(out)
    assert run.latents == latents_of(small)
    drawn = dit_jax.sample(run, [3, 7], solver=Euler(steps=2))
    assert drawn.shape == (2, 12, 12, 3) and drawn.dtype == np.uint8
    for options, message in [
        ({"rae": str(parts / "decoder")}, "holds a ViTDecoder: give the folder of a rep"),
        ({"rae": small, "vae": small}, "name one"),
        ({"vae": small}, "holds a RepresentationAutoencoder, not a VAE"),
    ]:
        with pytest.raises(InputError, match=message):
            convert_from_torch(str(tmp_path / "model.pt"), str(tmp_path / "other"), **options)
