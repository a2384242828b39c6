"""Fine-tuning starts from another run's averages, and says what it could not take."""

import jax
import numpy as np
import pytest

from dit_jax.errors import InputError
from dit_jax.run import load
from dit_jax.training.loop import train
from dit_jax.training.trainer import Trainer
from tests.training import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    train(tiny.experiment(folder, training__steps=3))
    return folder


def test_equal_models_start_from_the_average(source, tmp_path):
    trainer = Trainer(tiny.experiment(tmp_path, init_from=str(source)))
    state, expected = trainer.state(), load(str(source)).params
    assert int(state.step) == 0
    for tree in (state.params, *state.ema.values()):
        jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_what_does_not_fit_is_fresh_and_listed(source, tmp_path, caplog):
    options = {"model__num_classes": 0, "model__learn_sigma": True}
    experiment = tiny.experiment(
        tmp_path, init_from=str(source), sampling__guidance=None, **options
    )
    with caplog.at_level("INFO", "dit_jax"):
        state = Trainer(experiment).state()
    messages = caplog.text
    assert "re-initialised final/linear/kernel: (32, 4) there, (32, 8) here" in messages
    assert "not used from" in messages and "label_embed/table/embedding" in messages
    taken = load(str(source)).params["blocks"]
    jax.tree.map(np.testing.assert_array_equal, state.params["blocks"], taken)
    assert not np.any(state.params["final"]["linear"]["kernel"])


def test_a_resumed_run_does_not_start_over(source, tmp_path):
    options = {"init_from": str(source), "run__save_every": 2}
    train(tiny.experiment(tmp_path, training__steps=2, **options))
    again = tiny.experiment(tmp_path, training__steps=4, run__allow_changes=True, **options)
    assert int(Trainer(again).state().step) == 2


def test_nothing_that_fits_is_an_error(source, tmp_path):
    experiment = tiny.experiment(
        tmp_path, init_from=str(source), model__hidden=64, model__depth=3, model__patch=4
    )
    with pytest.raises(InputError, match="no parameter of"):
        Trainer(experiment).state()


def test_a_folder_without_checkpoint_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        Trainer(tiny.experiment(tmp_path, init_from=str(tmp_path / "x"))).state()
