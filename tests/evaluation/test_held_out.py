"""The held-out loss is the process' own, on the same problems for every run."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dit_jax.diffusion import Flow
from dit_jax.evaluation.evaluate import evaluate
from dit_jax.evaluation.held_out import held_out_loss
from dit_jax.evaluation.options import Evaluation
from dit_jax.randomness import Purpose, key_for
from tests.evaluation.tiny_run import tiny_run


def plain_loss(run, batches, size, seed):
    records, losses = run.experiment.data.open("test"), []
    for start in range(0, batches * size, size):
        batch = [records[i] for i in range(start, start + size)]
        x0 = np.stack([record["image"] for record in batch]).astype(np.float32) / 127.5 - 1
        noise = jax.random.normal(key_for(seed, start, Purpose.NOISE), x0.shape)
        t = run.process.sample_time(key_for(seed, start, Purpose.TIME), size)
        x = run.process.corrupt(x0, noise, t)
        label = {"label": np.array([record["label"] for record in batch])}
        time = run.process.model_time(t)
        prediction = run.model.apply({"params": run.params}, x, time, label).prediction
        losses += list(np.asarray(run.process.loss(prediction, x0, noise, t)[0]))
    return np.mean(losses)


@pytest.mark.parametrize("process", [Flow(), Flow(shift=2.0, data_time=1)])
def test_is_the_mean_over_images(process):
    run = tiny_run(process=process)
    ours = held_out_loss(run, 20, batch_size=8, seed=3)
    np.testing.assert_allclose(ours, plain_loss(run, 2, 8, 3), rtol=1e-5)


def test_depends_on_the_seed_and_nothing_else():
    run = tiny_run()
    assert held_out_loss(run, 16, 8, seed=0) == held_out_loss(run, 16, 8, seed=0)
    assert held_out_loss(run, 16, 8, seed=0) != held_out_loss(run, 16, 8, seed=1)


def test_the_evaluation_reports_it(tmp_path):
    run = tiny_run()
    options = Evaluation(samples=2, batch_size=2, held_out=6)
    found = evaluate(run, tmp_path, options)
    assert found.metrics == {"held_out_loss": held_out_loss(run, 6, 2, 0)}
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == found.metrics
    none = evaluate(run, tmp_path, dataclasses.replace(options, held_out=0))
    assert none.metrics == {}
