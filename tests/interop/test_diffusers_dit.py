"""diffusers' DiTTransformer2DModel: parity, and folders that load as they are."""

import jax
import numpy as np
import pytest

import dit_jax
from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch, convert_to_torch
from tests.torch_twins.to_jax import to_nchw, to_nhwc

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.torch_twins.dit import randomise_  # noqa: E402


def randomised_model(**changes):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 3, "sample_size": 8}
    sizes |= {"in_channels": 4, "out_channels": 8, "patch_size": 2, "num_embeds_ada_norm": 10}
    model = diffusers.DiTTransformer2DModel(**sizes | {"norm_eps": 1e-6} | changes)
    randomise_(model, seed=0)
    tie(model)
    return model.eval()


def tie(model):
    """As in every released model: one embedding of time and label, copied into the blocks."""
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)


@pytest.fixture(scope="module")
def model():
    return randomised_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusers")
    model.save_pretrained(path / "theirs")
    convert_from_torch(str(path / "theirs"), str(path / "run"))
    return path


def inputs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 8, 8, 4)).astype(np.float32)
    return x, np.array([3.0, 500.0, 999.0], np.float32), np.array([0, 7, 10])


def theirs_at(model, x, t, label, **options):
    x = torch.from_numpy(to_nchw(x)).requires_grad_(options.pop("grad", False))
    sample = model(x, torch.from_numpy(t), torch.from_numpy(label), return_dict=False)[0]
    return x, sample


def relative_error(ours, theirs):
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def test_output_and_gradient_are_those_of_diffusers(model, folder):
    run = dit_jax.load(str(folder / "run"))
    x, t, label = inputs()
    weight = np.random.default_rng(1).standard_normal((3, 8, 8, 8)).astype(np.float32)

    @jax.jit
    def ours(x):
        def apply(x):
            return run.model.apply({"params": run.params}, x, t, {"label": label}).prediction

        prediction, vjp = jax.vjp(apply, x)
        return prediction, vjp(jax.numpy.asarray(weight))[0]

    inside, sample = theirs_at(model, x, t, label, grad=True)
    (sample * torch.from_numpy(to_nchw(weight))).sum().backward()
    prediction, gradient = ours(x)
    assert relative_error(prediction, to_nhwc(sample.detach())) <= 1e-5
    assert relative_error(gradient, to_nhwc(inside.grad)) <= 1e-4


def test_a_folder_written_here_loads_in_diffusers_as_it_is(model, folder, tmp_path):
    convert_to_torch(str(folder / "run"), str(tmp_path / "out"))
    back = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out")
    assert back.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key
    with torch.no_grad():
        _, there = theirs_at(model, *inputs())
        _, again = theirs_at(back.eval(), *inputs())
    assert torch.equal(there, again)


def test_embeddings_that_differ_between_blocks_are_refused(model, tmp_path):
    untied = randomised_model()
    with torch.no_grad():
        untied.transformer_blocks[2].norm1.emb.timestep_embedder.linear_1.bias[0] += 1
    untied.save_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match=r"blocks\.2\.norm1.*linear_1\.bias differs from"):
        convert_from_torch(str(tmp_path / "theirs"), str(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_weights_of_dits_own_code_are_read_as_such_when_the_model_is_named(tmp_path):
    model = randomised_model(num_attention_heads=6, num_layers=12, num_embeds_ada_norm=1000)
    model.save_pretrained(tmp_path / "theirs")
    convert_from_torch(str(tmp_path / "theirs"), str(tmp_path / "run"), layout="diffusers-dit")
    assert dit_jax.load(str(tmp_path / "run")).model.time_features.endpoint
