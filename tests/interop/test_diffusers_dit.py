"""diffusers' DiTTransformer2DModel: parity, and folders that load as they are."""

import numpy as np
import pytest

import dit_jax
from dit_jax.errors import InputError
from dit_jax.interop.convert import convert_from_torch, convert_to_torch

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.interop import parity  # noqa: E402
from tests.torch_twins.dit import randomise_  # noqa: E402

INDICES = np.array([3.0, 500.0, 999.0], np.float32)


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


class Wrapped(torch.nn.Module):
    """Called as the twins are."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t, label):
        return self.model(x, t, label, return_dict=False)[0]


def test_output_and_gradient_are_those_of_diffusers(model, folder):
    run = dit_jax.load(str(folder / "run"))
    output, gradient = parity.errors(run, Wrapped(model), INDICES)
    assert output <= 1e-5
    assert gradient <= 1e-4


def test_a_folder_written_here_loads_in_diffusers_as_it_is(model, folder, tmp_path):
    convert_to_torch(str(folder / "run"), str(tmp_path / "out"))
    back = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out")
    assert back.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


def test_embeddings_that_differ_between_blocks_are_refused(model, tmp_path):
    untied = randomised_model()
    with torch.no_grad():
        untied.transformer_blocks[2].norm1.emb.timestep_embedder.linear_1.bias[0] += 1
    untied.save_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match=r"blocks\.2\.norm1.*linear_1\.bias differs from"):
        convert_from_torch(str(tmp_path / "theirs"), str(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_weights_of_dits_own_code_are_read_as_such_when_the_model_is_named(tmp_path):
    """The published folder holds weights that were trained with DiT's own frequencies."""
    sizes = {"num_attention_heads": 6, "num_layers": 12, "num_embeds_ada_norm": 1000}
    randomised_model(**sizes, sample_size=32).save_pretrained(tmp_path / "theirs")
    convert_from_torch(str(tmp_path / "theirs"), str(tmp_path / "run"))
    assert dit_jax.load(str(tmp_path / "run")).model.time_features.endpoint
    convert_from_torch(str(tmp_path / "theirs"), str(tmp_path / "named"), model="DiT-S/2")
    assert dit_jax.load(str(tmp_path / "named")).model == dit_jax.create_model("DiT-S/2")


@pytest.mark.slow
def test_dit_xl_agrees_at_full_size(tmp_path):
    """28 layers add up more rounding than three do: 5e-5."""
    sizes = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28}
    model = randomised_model(**sizes, sample_size=32, num_embeds_ada_norm=1000)
    model.save_pretrained(tmp_path / "theirs")
    convert_from_torch(str(tmp_path / "theirs"), str(tmp_path / "run"))
    run = dit_jax.load(str(tmp_path / "run"))
    output, gradient = parity.errors(run, Wrapped(model), INDICES)
    print(f"output {output:.1e}, gradient {gradient:.1e}")
    assert output <= 5e-5
    assert gradient <= 1e-4
