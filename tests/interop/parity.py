"""What every family's conversion has to show against a PyTorch model."""

import jax
import numpy as np
import torch
from safetensors.torch import load_file

import dit_jax
from dit_jax.interop.convert import convert_from_torch, convert_to_torch
from dit_jax.layers.block import BlockGroup
from dit_jax.models import DiTDH
from tests.torch_twins.to_jax import to_nchw, to_nhwc

BATCH = 3


def relative_error(ours, theirs):
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def converted(twin, folder, **options):
    """Saves a twin, converts it, and opens the run."""
    torch.save(twin.state_dict(), folder / "model.pt")
    convert_from_torch(str(folder / "model.pt"), str(folder / "run"), **options)
    return dit_jax.load(str(folder / "run"))


def errors(run, twin, t):
    """Relative errors of the prediction, and of its gradient with respect to the input."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, *run.shape)).astype(np.float32)
    label = np.array([0, 1, run.model.num_classes])
    inside = torch.from_numpy(to_nchw(x)).requires_grad_(True)
    theirs = first(twin(inside, torch.from_numpy(t), torch.from_numpy(label)))
    weight = rng.standard_normal(to_nhwc(theirs.detach()).shape).astype(np.float32)
    (theirs * torch.from_numpy(to_nchw(weight))).sum().backward()

    @jax.jit
    def ours(params, x):
        def apply(x):
            prediction = run.model.apply({"params": params}, x, t, {"label": label}).prediction
            return prediction[..., : weight.shape[-1]]  # SiT's twin drops the dead variance.

        prediction, vjp = jax.vjp(apply, x)
        return prediction, vjp(jax.numpy.asarray(weight))[0]

    prediction, slope = ours(run.params, x)
    return (
        relative_error(prediction, to_nhwc(theirs.detach())),
        relative_error(slope, to_nhwc(inside.grad)),
    )


def check_layers(run, twin, stacks, context, t, tolerance=1e-5):
    """Every block maps the twin's input of it to the twin's output; names the first that does not.

    Args:
      run: the converted run.
      twin: a model with `blocks`.
      stacks: paths of the parameters whose layers the blocks are, in order.
      context: makes a `Context` of what the twin's block is called with beside the tokens.
      t: times [B].
    """
    calls = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, out: calls.append((inputs, out)))
        for block in twin.blocks
    ]
    rng = np.random.default_rng(0)
    x = torch.from_numpy(to_nchw(rng.standard_normal((BATCH, *run.shape)).astype(np.float32)))
    with torch.no_grad():
        twin(x, torch.from_numpy(t), torch.zeros(BATCH, dtype=torch.int64))
    for hook in hooks:
        hook.remove()
    layers = [
        (block, jax.tree.map(lambda leaf, i=i: leaf[i], params))
        for stack in stacks
        for i in range(len(jax.tree.leaves(run.params[stack])[0]))
        for block, params in _blocks(_stacked(run.model, stack), run.params[stack]["layers"])
    ]
    apply = jax.jit(
        lambda block, params, x, vector: block.apply({"params": params}, x, context(vector)),
        static_argnums=0,
    )
    assert len(layers) == len(calls)
    for number, ((block, params), ((x, vector, *_), theirs)) in enumerate(zip(layers, calls)):
        ours, _ = apply(block, params, x.numpy(), vector.numpy())
        error = relative_error(ours, first(theirs))
        assert error <= tolerance, f"block {number} is the first to diverge, by {error:.1e}"


def _stacked(model, stack):
    """The block of which a stack of the model has many."""
    if isinstance(model, DiTDH):
        return model.block(model.heads if stack == "encoder" else model.wide_heads)
    return model.block()


def _blocks(block, params):
    """The blocks of what is stacked, each with its parameters."""
    if isinstance(block, BlockGroup):
        return [(own, params[f"blocks_{i}"]) for i, own in enumerate(block.blocks)]
    return [(block, params)]


def check_round_trip(folder, twin, name):
    """What came from PyTorch goes back bit for bit."""
    convert_to_torch(str(folder / "run"), str(folder / name))
    reader = load_file if name.endswith(".safetensors") else torch.load
    back = reader(folder / name)
    assert back.keys() == twin.state_dict().keys()
    for key, value in twin.state_dict().items():
        assert torch.equal(back[key], value), key


def first(output):
    return output[0] if isinstance(output, tuple) else output
