"""A dense run becomes a mixture of experts that is the same function, or one nearby."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dit_jax
from dit_jax.checkpoint import newest
from dit_jax.data import batches
from dit_jax.errors import InputError
from dit_jax.experiment import RunFolder, Training
from dit_jax.layers.mlp import SwiGLU
from dit_jax.models import DiT
from dit_jax.randomness import Purpose, key_for
from dit_jax.run import load
from dit_jax.training.loop import train
from dit_jax.training.step import make_loss
from dit_jax.upcycling import Copy, Noise, Taylor, make_method, upcycle
from dit_jax.upcycling.importance import neuron_importance
from dit_jax.upcycling.methods import deal, ratio_of
from tests.evaluation.tiny_run import save, tiny_experiment, tiny_run

NEURONS = 64  # Of each of the two blocks, whose tokens are 16 wide.
TINY_TAYLOR = {"batches": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return save(tmp_path_factory.mktemp("runs") / "dense", tiny_run())


@pytest.fixture(scope="module")
def taylor(dense, tmp_path_factory):
    """Half of the first block's neurons are dead, every second one."""
    run = tiny_run()
    for name in ("fc1", "fc2"):
        ffn = run.params["blocks"]["layers"]["ffn"]
        ffn[name]["kernel"][0] *= dead_are_zero(name)
    dead = save(tmp_path_factory.mktemp("runs") / "dead", run)
    out = str(tmp_path_factory.mktemp("runs") / "taylor")
    return dead, out, upcycle(dead, out, Taylor(**TINY_TAYLOR))


def dead_are_zero(name):
    alive = np.arange(NEURONS) % 2
    return alive if name == "fc1" else alive[:, None]


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, x):
    t, labels = jnp.array([0.1, 0.5, 0.9]), jnp.array([3, 7, 10])
    return model.apply({"params": params}, x, t, {"label": labels})


def output(run, params=None):
    x = jax.random.normal(jax.random.key(1), (3, *run.shape))
    return apply(run.model, params or run.params, x)


def assert_same_function(run, expected):
    found = output(run).prediction
    np.testing.assert_allclose(found, output(expected).prediction, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("every", [1, 2])
def test_copies_are_the_dense_function(dense, tmp_path, every):
    upcycle(dense, str(tmp_path / "moe"), Copy(experts=3), every=every)
    run = load(str(tmp_path / "moe"))
    assert_same_function(run, load(dense))
    losses = output(run).aux["losses"]["balance"]
    assert losses.shape == (2 // every,)


def test_noise_makes_experts_differ_by_as_much_as_is_asked(dense, tmp_path):
    outs = [str(tmp_path / name) for name in "abc"]
    for out, seed in zip(outs, (0, 0, 1)):
        upcycle(dense, out, Noise(experts=3, noise=0.1), seed=seed)
    first, again, other = (load(out).params for out in outs)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    experts = first["blocks"]["layers"]["ffn"]["experts"]
    for name, layer in load(dense).params["blocks"]["layers"]["ffn"].items():
        kernels = experts[name]["kernel"]
        noise = kernels - layer["kernel"][:, None]
        relative = noise.std((2, 3)) / layer["kernel"].std((1, 2))[:, None]
        np.testing.assert_allclose(relative, 0.1, rtol=0.1)
        assert abs(np.corrcoef(noise.reshape(6, -1)) - np.eye(6)).max() < 0.2
        np.testing.assert_array_equal(experts[name]["bias"][:, 1], layer["bias"])
        assert not np.allclose(kernels, other["blocks"]["layers"]["ffn"]["experts"][name]["kernel"])


def test_importance_is_first_order_and_of_the_runs_own_loss(dense):
    run, seed = load(dense), 5
    scores = neuron_importance(run, steps=1, batch_size=16, seed=seed)
    (batch,) = batches(
        run.experiment.data.open(), batch_size=16, start=0, steps=1, seed=seed, num_classes=10
    )
    x0 = batch["image"] / 127.5 - 1
    example = {"x0": x0, "noise": jax.random.normal(key_for(seed, 0, Purpose.NOISE), x0.shape)}
    example |= {"t": run.process.sample_time(key_for(seed, 0, Purpose.TIME), 16)}
    example |= {"condition": {"label": batch["label"]}}
    key = key_for(seed, 0, Purpose.DROPOUT)
    gradient = jax.grad(lambda p: make_loss(run.model, run.process)(p, example, key)[0])
    ffn = run.params["blocks"]["layers"]["ffn"]
    slopes = jax.jit(gradient)(run.params)["blocks"]["layers"]["ffn"]
    for layer in range(2):
        for neuron in (0, 40):
            own = [("fc1", "kernel", np.s_[layer, :, neuron]), ("fc1", "bias", (layer, neuron))]
            own += [("fc2", "kernel", np.s_[layer, neuron])]
            parts = [np.abs(ffn[a][b][at] * slopes[a][b][at]).sum() for a, b, at in own]
            np.testing.assert_allclose(scores[layer, neuron], sum(parts), rtol=1e-3)


def test_all_pieces_with_weights_of_one_are_the_dense_function(dense, tmp_path):
    out = str(tmp_path / "moe")
    upcycle(dense, out, Taylor(experts=4, top_k=4, shared=0.5, **TINY_TAYLOR))
    run = load(out)
    run.params["blocks"]["layers"]["ffn"]["router"]["kernel"] *= 0
    assert_same_function(run, load(dense))


def test_important_neurons_are_shared_and_the_rest_is_dealt_out(taylor):
    source, out, lines = taylor
    dense = load(source).params["blocks"]["layers"]["ffn"]
    ffn = load(out).params["blocks"]["layers"]["ffn"]
    shared, experts = ffn["shared"]["fc1"]["kernel"], ffn["experts"]["fc1"]["kernel"]
    assert shared.shape == (2, 16, 16) and experts.shape == (2, 12, 16, 4)
    assert np.abs(shared[0]).sum(0).all()  # No dead neuron is shared.
    alive = (np.abs(experts[0]).sum(1) > 0).sum(1)
    assert set(alive) <= {1, 2} and alive.sum() == NEURONS // 2 - 16
    np.testing.assert_array_equal(ffn["shared"]["fc2"]["bias"], dense["fc2"]["bias"])
    assert not ffn["experts"]["fc2"]["bias"].any()
    assert "24 neurons of an FFN are active, and 64 in the dense one: 37.5%" in lines
    np.testing.assert_array_equal(deal(np.arange(6), 2), [[0, 3, 4], [1, 2, 5]])


def test_weights_start_near_one_and_learn(taylor):
    _, out, _ = taylor
    run = load(out)
    np.testing.assert_allclose(output(run).aux["routing"].weights, 1, atol=0.1)

    def loss(params):
        return jnp.square(output(run, params=params).prediction).mean()

    slope = jax.grad(loss)(run.params)["blocks"]["layers"]["ffn"]["router"]["kernel"]
    assert np.abs(slope).max() > 1e-6


def test_an_upcycled_run_samples_and_trains_on(taylor, tmp_path, caplog):
    _, out, _ = taylor
    images = dit_jax.sample(load(out), [3, 7])
    assert images.shape == (2, 8, 8, 1)
    checkpoints, step = newest(out)
    upcycled, _ = checkpoints.experiment(step)
    assert upcycled.process == tiny_experiment().process and upcycled.run.dir == out
    assert checkpoints.metadata(step)["upcycled"]["method"]["fields"]["shared"] == 0.25
    experiment = dataclasses.replace(
        upcycled,
        training=Training(steps=2, batch_size=8, ema=(0.9,)),
        run=RunFolder(str(tmp_path / "tuned"), log_every=1),
        init_from=out,
    )
    with caplog.at_level("INFO", "dit_jax"):
        tuned = train(experiment)
    count = len(jax.tree.leaves(tuned.params))
    assert f"{count} of {count} parameters" in caplog.text
    assert "balance_loss" in (tmp_path / "tuned" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("copy", {"experts": 4, "top_k": 5}, "--top-k 5 of 4 experts"),
        ("copy", {"experts": 0}, "--experts 0: it must be at least 1"),
        ("copy", {"noise": 0.1}, "--noise is not for --method copy: it has --experts, --top-k"),
        ("noise", {"noise": 0.0}, "--noise 0.0: it must be above 0"),
        ("taylor", {"shared": 1.0}, "--shared 1.0: it must lie between 0 and 1"),
        ("taylor", {"batches": 0}, "--batches 0: it must be at least 1"),
        ("taylor", {"experts": 5}, "48 of 64 neurons, which do not divide .* --shared 0.21875 wo"),
        ("taylor", {"experts": 64}, "are too many for 64 neurons"),
        ("copy", {"every": 3}, "--every 3 does not divide the 2 blocks"),
        ("copy", {"seed": -1}, "--seed -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(dense, tmp_path, method, options, message):
    placed = {name: options.pop(name) for name in ("every", "seed") if name in options}
    with pytest.raises(InputError, match=message):
        upcycle(dense, str(tmp_path / "moe"), make_method(method, **options), **placed)
    assert not list(tmp_path.iterdir())


def test_shares_and_ratios_may_be_rounded():
    assert int(ratio_of(15, 44) * 44) == 15 and int(15 / 44 * 44) == 14
    assert Taylor(experts=5, shared=0.21875).mixer(DiT().ffn, 16).experts.ratio == 10 / 16
    assert Taylor(experts=12, shared=0.333333).mixer(DiT().ffn, 18).experts.ratio == 4 / 18


def test_runs_that_cannot_be_upcycled_are_refused(dense, tmp_path, monkeypatch):
    model = tiny_experiment().model.clone(ffn=SwiGLU())
    gated = save(tmp_path / "gated", tiny_run(model=model))
    with pytest.raises(InputError, match="is a DiT with SwiGLU: experts are made of a DiT's plain"):
        upcycle(gated, str(tmp_path / "moe"), Copy())
    with pytest.raises(InputError, match="holds no checkpoint"):
        upcycle(str(tmp_path / "nothing"), str(tmp_path / "moe"), Copy())
    with pytest.raises(InputError, match="is there already"):
        upcycle(dense, gated, Copy())
    monkeypatch.setattr("dit_jax.upcycling.folder._routers", lambda *_: {"no/such": 0})
    with pytest.raises(KeyError):
        upcycle(dense, str(tmp_path / "moe"), Copy())
    assert [path.name for path in tmp_path.iterdir()] == ["gated"]


def test_the_command_makes_a_run_and_says_what_it_made(dense, tmp_path):
    out = tmp_path / "moe"

    def command(*options):
        line = [sys.executable, "-m", "dit_jax", "upcycle", dense, str(out), *options]
        return subprocess.run(line, capture_output=True, text=True, timeout=300)

    options = ["--method", "taylor", "--batches", "1", "--batch-size", "8", "--every", "2"]
    done = command(*options)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 blocks: 12 experts of 4 neurons, 2 a token and a shared one of 16" in done.stdout
    assert load(str(out)).model.ffn.mixers[1].router.top_k == 2
    again = command(*options)
    assert again.returncode == 2
    assert again.stderr.strip() == f"error: '{out}' is there already: choose another folder"
    assert command("--method", "other").returncode == 2
