import dataclasses
import pathlib
import runpy

import jax
import pytest

import dit_jax
from dit_jax.data import ImageFolder
from dit_jax.diffusion import Flow, Gaussian, dimension_shift
from dit_jax.errors import InputError
from dit_jax.experiment import Experiment
from dit_jax.models import DiT
from dit_jax.models.inputs import example_inputs
from dit_jax.presets import PRESETS, create_model, find_preset
from dit_jax.sizes import count_parameters
from dit_jax.training.reconstruction.experiment import DecoderExperiment

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
IMAGENET = {
    "dit_s_imagenet256": "DiT-S/2",
    "dit_b_imagenet256": "DiT-B/2",
    "dit_l_imagenet256": "DiT-L/2",
    "dit_xl_imagenet256": "DiT-XL/2",
    "dit_xl_imagenet512": "DiT-XL/2",
    "sit_xl_imagenet256": "SiT-XL/2",
    "dit_dh_xl_imagenet256": "DiT-DH-XL",
    "dit_dh_xl_imagenet512": "DiT-DH-XL",
    "dit_moe_s_imagenet256": "DiT-MoE-S/2-8E2A",
    "dit_moe_g_imagenet256": "DiT-MoE-G/2-16E2A",
    "dit_moe_g_imagenet512": "DiT-MoE-G/2-16E2A",
    "promoe_b_imagenet256": "ProMoE-B",
    "promoe_xl_imagenet256": "ProMoE-XL",
}
# Parameters at 256 px by the released code's layers, the frozen position table included; DiT's by
# patch 2, 4 and 8.
PARAMETERS = {
    "S": (32_963_360, 32_945_024, 33_148_160),
    "B": (130_512_416, 130_475_648, 130_881_536),
    "L": (458_102_816, 458_053_760, 458_594_816),
    "XL": (675_129_632, 675_074_432, 675_683_072),
}


OTHER_PARAMETERS = {
    "LightningDiT-B/1": 130_556_192,
    "LightningDiT-B/2": 130_556_288,
    "LightningDiT-L/2": 458_153_056,
    "LightningDiT-XL/1": 675_256_736,
    "LightningDiT-XL/2": 675_256_832,
    "DDT-B/2": 130_262_800,
    "DDT-L/2": 457_648_144,
    "DDT-XL/2": 674_646_352,
    "DiT-DH-S": 196_455_764,
    "DiT-DH-B": 294_295_892,
    "DiT-DH-L": 621_744_436,
    "DiT-DH-XL": 838_675_796,
    "DiT-MoE-S/2-8E2A": 199_307_552,
    "DiT-MoE-S/2-16E2A": 369_213_728,
    "DiT-MoE-B/2-8E2A": 795_861_536,
    "DiT-MoE-B/2-16E2A": 1_475_412_512,
    "DiT-MoE-L/2-8E2A": 2_823_764_000,
    "DiT-MoE-XL/2-8E2A": 4_168_172_192,
    "DiT-MoE-G/2-16E2A": 16_503_731_232,
    "ProMoE-S": 75_543_584,
    "ProMoE-B": 300_607_520,
    "ProMoE-L": 1_062_684_704,
    "ProMoE-XL": 1_567_733_792,
}


def test_the_presets_are_the_papers_tables():
    families = {f"{f}-{s}/{p}" for f in ("DiT", "SiT") for s in PARAMETERS for p in (2, 4, 8)}
    assert set(PRESETS) == families | OTHER_PARAMETERS.keys()


@pytest.mark.parametrize("size", PARAMETERS)
@pytest.mark.parametrize(("column", "patch"), list(enumerate((2, 4, 8))))
def test_parameters_are_as_published(size, column, patch):
    for family in ("DiT", "SiT"):  # SiT keeps the dead variance channels.
        preset = find_preset(f"{family}-{size}/{patch}")
        assert count_parameters(preset.model, preset.shape) == PARAMETERS[size][column]


@pytest.mark.parametrize("name", OTHER_PARAMETERS)
def test_parameters_of_later_families_are_as_released(name):
    preset = find_preset(name)
    assert count_parameters(preset.model, preset.shape) == OTHER_PARAMETERS[name]


def test_the_512_px_model_has_a_larger_table():
    assert count_parameters(create_model("DiT-XL/2"), (64, 64, 4)) == 676_014_368


def test_a_preset_knows_its_clock():
    assert find_preset("DiT-B/4").process == Gaussian()
    assert find_preset("SiT-B/4").process == Flow(data_time=1)


def test_create_model_by_name():
    model = dit_jax.create_model("DiT-S/4")
    assert isinstance(model, DiT)
    assert (model.depth, model.hidden, model.heads, model.patch) == (12, 384, 6, 4)
    assert model.num_classes == 1000 and model.learn_sigma


def test_create_model_with_changes():
    model = create_model("DiT-S/2", num_classes=10, depth=2, dtype="bfloat16")
    assert model == PRESETS["DiT-S/2"].model.clone(num_classes=10, depth=2, dtype="bfloat16")
    assert PRESETS["DiT-S/2"].model.depth == 12
    params = jax.eval_shape(model.init, *example_inputs((32, 32, 4)))["params"]
    assert params["label_embed"]["table"]["embedding"].shape == (11, 384)


@pytest.mark.parametrize(
    ("name", "near"),
    [("DiT-XL2", "DiT-XL/2"), ("dit-s/4", "DiT-S/4"), ("SiT-B/3", "SiT-B/")],
)
def test_a_wrong_name_names_the_nearest(name, near):
    with pytest.raises(InputError, match=f"no preset '{name}': perhaps '.*{near}"):
        create_model(name)


@pytest.mark.parametrize("field", ["dept", "num_clases"])
def test_a_wrong_field_names_the_nearest(field):
    near = {"dept": "depth", "num_clases": "num_classes"}[field]
    with pytest.raises(InputError, match=f"DiT has no field '{field}': perhaps '{near}'"):
        create_model("DiT-S/2", **{field: 1})


@pytest.mark.parametrize("field", ["zzz", "parent"])
def test_a_hopeless_field_lists_them_all(field):
    with pytest.raises(InputError, match=f"no field '{field}': (it has patch, hidden|perhaps)"):
        create_model("DiT-S/2", **{field: None})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_an_experiment_with_its_facts(path):
    namespace = runpy.run_path(str(path))
    assert isinstance(namespace["experiment"], Experiment | DecoderExperiment)
    for fact in ("command:", "hardware:", "result:", "source:"):
        assert fact in namespace["__doc__"]
    assert namespace["experiment"].run.dir == f"runs/{path.stem}"


def test_every_imagenet_configuration_is_looked_at():
    decoders = {"rae_decoder_imagenet256", "rae_decoder_imagenet512"}
    found = {path.stem for path in CONFIGS if "imagenet" in path.stem}
    assert found == IMAGENET.keys() | decoders


@pytest.mark.parametrize("stem", IMAGENET)
def test_imagenet_configurations_train_the_presets(stem):
    path = next(path for path in CONFIGS if path.stem == stem)
    experiment = runpy.run_path(str(path))["experiment"]
    preset = find_preset(IMAGENET[stem])
    same = {name: getattr(preset.model, name) for name in ("dtype", "remat", "num_classes")}
    assert experiment.model.clone(**same) == preset.model
    process = preset.process
    if getattr(process, "shift", 1) != 1:  # It goes with the size of the latents.
        process = dataclasses.replace(process, shift=dimension_shift(experiment.shape))
    assert experiment.process == process
    experiment.sampling.solver.check(experiment.process)
    assert experiment.model.num_classes == 1000
    if not isinstance(experiment.data, ImageFolder):  # Which counts its subfolders.
        assert experiment.data.num_classes == 1000


@pytest.mark.parametrize("size", [256, 512])
def test_a_decoders_configuration_is_that_of_its_diffusion_model(size):
    def config(name):
        return runpy.run_path(str(CONFIGS[0].with_name(f"{name}_imagenet{size}.py")))["experiment"]

    decoder, model = config("rae_decoder"), config("dit_dh_xl")
    assert decoder.latents.encoder == model.latents.encoder
    assert decoder.latents.decoder == model.latents.decoder
    assert decoder.shape == model.data.shape == (size, size, 3)
    assert model.shape == (size // 16, size // 16, 768)
    decoder.check()
