"""How fast is one training step, against diffusers in PyTorch?

Ours is `make_step`, jitted as in the trainer; theirs is diffusers' DiTTransformer2DModel, eager
or under torch.compile, with fused AdamW and one fused lerp for the average. Both find the moments
of cached 32x32x4 latents and labels on the device, and do the same work:
- sample the VAE's posterior; draw noise, times (1000 steps, linear betas) and label dropout (0.1);
- forward, mean squared error of the noise, no learned variance; backward (ours recomputes all but
  the weight matmuls, its default; theirs keeps everything, as it does by default);
- AdamW, one exponential average; nothing is fetched but the loss, at the end.
Norms, which our step also computes for the log, are not returned here, so XLA drops them. diffusers
gives every block its own embedding of time and label: they are tied here, and labels dropped once,
so that both models have DiT's parameters; their numbers must agree. In bfloat16, "autocast" keeps
float32 parameters, as ours does; "pure" has all in bfloat16, moments and average too: too coarse to
train with, so only a bound.

Contestants take turns, in processes of their own. A turn is `--steps` steps, sent off at once and
waited for at the end. MFU counts three forward passes (dit_jax.flops) and the bfloat16 peak.

    python benchmarks/train_step.py [--cases DiT-S/2:8 DiT-B/2:4] [--repeats 5] [--steps 2]
        [--dtype float32] [--profile DIR]
    python benchmarks/train_step.py --device gpu --repeats 7 --steps 20    # bfloat16; XL/2 too

Needs torch and diffusers: pip install -e ".[torch,peers]"; torch.compile needs a C++ compiler on
a CPU, triton on a GPU.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
from typing import Any

import numpy as np
import report
from race import Contestant, Entry, RaceError, race

# Neither framework is imported up here: a contestant's process loads its own alone.

CASES = {
    "cpu": ["DiT-S/2:8", "DiT-B/2:4"],
    "gpu": ["DiT-S/2:256", "DiT-B/2:128", "DiT-L/2:32", "DiT-XL/2:32"],
}
DTYPES = {"cpu": "float32", "gpu": "bfloat16"}
SHAPE = (32, 32, 4)
LEARNING_RATE, EMA_DECAY, LABEL_DROPOUT, LATENT_SCALE = 1e-4, 0.9999, 0.1, 0.18215


@dataclasses.dataclass(frozen=True)
class Case:
    """A preset's sizes at a batch size, on a kind of device, in a dtype."""

    preset: str
    batch_size: int
    depth: int
    hidden: int
    heads: int
    patch: int
    device: str
    dtype: str

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Moments of latents [B, h, w, 2c], means before log variances, and labels [B]."""
        rng = np.random.default_rng(0)
        height, width, channels = SHAPE
        moments = rng.standard_normal((self.batch_size, height, width, 2 * channels), np.float32)
        return moments, rng.integers(0, 1000, self.batch_size)


def main() -> None:
    """Races the cases and saves the report."""
    parser = report.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU")
    parser.add_argument("--cases", nargs="+", metavar="PRESET:BATCH", help="e.g. DiT-XL/2:32")
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--compile-mode", default="default", help="torch.compile's mode")
    parser.add_argument("--restart", action="store_true", help="one in memory at a time: slow")
    parser.add_argument("--tiny", action="store_true", help="2 layers of width 64, for a try")
    parser.add_argument("--profile", metavar="DIR", help="write a jax.profiler trace of ours")
    options = parser.parse_args()
    options.dtype = options.dtype or DTYPES[options.device]
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[options.device]
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # The others need room on the GPU.
    cases = [parse_case(text, options) for text in options.cases or CASES[options.device]]
    results = [compare(case, options) for case in cases]
    report.save(f"train_step-{options.device}-{options.dtype}", __doc__, results, options.out)


def parse_case(text: str, options: argparse.Namespace) -> Case:
    """Reads PRESET:BATCH."""
    from dit_jax.presets import find_preset

    name, _, batch_size = text.partition(":")
    model = find_preset(name).model
    sizes = {f: getattr(model, f) for f in ("depth", "hidden", "heads", "patch")}
    if options.tiny:
        sizes |= {"depth": 2, "hidden": 64, "heads": 4}
    return Case(name, int(batch_size), **sizes, device=options.device, dtype=options.dtype)


def contestants(options: argparse.Namespace) -> list[str]:
    """Names of who takes part."""
    precisions = {"float32": [""], "bfloat16": ["_autocast", "_pure"]}[options.dtype]
    modes = ("torch_eager", "torch_compile")
    names = ["ours", *(mode + precision for precision in precisions for mode in modes)]
    return [name for name in names if not options.contestants or name in options.contestants]


def compare(case: Case, options: argparse.Namespace) -> dict:
    """Times all contestants of a case."""
    makers = {name: functools.partial(build, name, case, options) for name in contestants(options)}
    entries = race(makers, options.repeats, options.steps, restart=options.restart)
    result = summary(case, entries)
    result |= {"repeats": options.repeats, "steps": options.steps}
    result |= {"compile_mode": options.compile_mode}
    print(json.dumps(result), flush=True)
    return result


def summary(case: Case, entries: dict[str, Entry]) -> dict:
    """One case's row of the report."""
    facts = {name: entry.facts for name, entry in entries.items()}
    seconds = {name: entry.seconds for name, entry in entries.items() if not entry.failed}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result: dict[str, Any] = {"model": case.preset, "batch_size": case.batch_size}
    result |= {"dtype": case.dtype, "depth": case.depth, "hidden": case.hidden}
    ours = facts.get("ours", {})
    flops, peak = ours.get("step_flops"), ours.get("peak_flops")
    if ours:
        result |= {"device": ours["device"], "step_gflops": round(flops / 1e9, 1)}
    for name, values in seconds.items():
        result[name] = {
            "seconds": round(median[name], 4),
            "lowest": round(min(values), 4),
            "highest": round(max(values), 4),
            "images_per_second": round(case.batch_size / median[name], 2),
            "start_seconds": round(facts[name]["start_seconds"], 1),
            "parameters": facts[name]["parameters"],
        }
        if peak:
            result[name]["mfu"] = round(flops / median[name] / peak, 4)
    result |= {name: {"failed": e.failed} for name, e in entries.items() if e.failed}
    if len({facts[name]["parameters"] for name in seconds}) > 1:
        result["warning"] = "the models differ in size: not a fair race"
    theirs = [name for name in seconds if name != "ours"]
    if "ours" in seconds and theirs:
        ratios = {
            name: statistics.median(a / b for a, b in zip(seconds["ours"], seconds[name]))
            for name in theirs
        }
        result["ours_over"] = {name: round(ratio, 3) for name, ratio in ratios.items()}
        result["torch_best"] = best = min(theirs, key=median.get)
        result["ours_over_torch_best"] = round(ratios[best], 3)
    return result


def build(name: str, case: Case, options: argparse.Namespace) -> Contestant:
    """Makes the contestant of that name."""
    if name == "ours":
        return Ours(case, options.profile)
    mode = options.compile_mode if name.startswith("torch_compile") else None
    return Torch(case, mode, name.rpartition("_")[2])


class Step:
    """What the contestants share."""

    def check(self, loss):
        if not 0 < float(loss) < 10:  # Knowing nothing costs 1, and knowing it badly a little more.
            raise RaceError(f"a loss of {float(loss)} is none of training")

    def rest(self):
        """Keeps its memory."""

    def end(self):
        """Has nothing left to do."""


class Ours(Step):
    """dit_jax's step, jitted with the shardings and the donation of the training loop."""

    def __init__(self, case: Case, profile: str | None):
        import jax

        from dit_jax.diffusion import Gaussian
        from dit_jax.flops import PEAK_FLOPS, forward_flops
        from dit_jax.latents import VAE, Cached
        from dit_jax.models.inputs import example_inputs
        from dit_jax.parallel.mesh import Parallel
        from dit_jax.parallel.sharding import Layout
        from dit_jax.presets import create_model
        from dit_jax.training.optimizer import AdamW
        from dit_jax.training.state import new_state, state_shardings
        from dit_jax.training.step import make_step

        model = create_model(
            case.preset,
            depth=case.depth,
            hidden=case.hidden,
            heads=case.heads,
            label_dropout=LABEL_DROPOUT,
            learn_sigma=False,
            dtype=case.dtype,
        )
        layout = Layout(Parallel().mesh(jax.devices()[:1]))
        optimizer = AdamW(LEARNING_RATE).build(steps=1_000_000)
        process, latents = Gaussian(variance="fixed_small"), Cached(VAE(scale=LATENT_SCALE))
        full = make_step(model, process, latents, optimizer, accumulation=1, seed=0, layout=layout)

        def step(state, batch):
            state, metrics = full(state, batch, {})
            return state, metrics["loss"]

        def fresh():
            params = model.init(*example_inputs(SHAPE))["params"]
            return new_state(params, optimizer, (EMA_DECAY,))

        shardings = state_shardings(layout, optimizer, jax.eval_shape(fresh))
        self._profile = profile
        self._state = jax.jit(fresh, out_shardings=shardings)()
        moments, label = case.batch()
        self._batch = jax.device_put(
            {"image": moments, "label": label.astype(np.int32)}, layout.batch
        )
        self._step = jax.jit(
            step,
            in_shardings=(shardings, layout.batch),
            out_shardings=(shardings, layout.replicated),
            donate_argnums=0,
        )
        kind = jax.devices()[0].device_kind
        self.facts = {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self._state.params)),
            "device": kind,
            "step_flops": 3 * case.batch_size * forward_flops(model, SHAPE),
            "peak_flops": PEAK_FLOPS.get(kind) if case.dtype == "bfloat16" else None,
        }

    def send(self):
        self._state, loss = self._step(self._state, self._batch)
        return loss

    def wait(self):
        import jax

        jax.block_until_ready(self._state)

    def end(self):
        if self._profile:
            import jax

            with jax.profiler.trace(self._profile):
                for _ in range(3):
                    self.send()
                self.wait()


class Torch(Step):
    """diffusers' model in a plain PyTorch step; `mode` is torch.compile's, None for eager."""

    def __init__(self, case: Case, mode: str | None, precision: str):
        import diffusers
        import torch

        torch.manual_seed(0)
        self._torch, self._gpu = torch, case.device == "gpu"
        device = "cuda" if self._gpu else "cpu"
        if self._gpu:
            torch.set_float32_matmul_precision("high")  # TensorFloat-32, as XLA does by default.
        self._autocast = precision == "autocast"
        dtype = torch.bfloat16 if precision == "pure" else torch.float32
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=case.heads,
            attention_head_dim=case.hidden // case.heads,
            in_channels=SHAPE[-1],
            num_layers=case.depth,
            sample_size=SHAPE[0],
            patch_size=case.patch,
        )
        embedder = model.transformer_blocks[0].norm1.emb
        embedder.class_embedder.dropout_prob = 0.0
        for block in model.transformer_blocks:
            block.norm1.emb = embedder
        model = model.to(device, dtype).train()
        self._parameters = list(model.parameters())
        self._average = [p.detach().clone() for p in self._parameters]
        self._optimizer = torch.optim.AdamW(
            self._parameters, LEARNING_RATE, weight_decay=0.0, fused=True
        )
        moments, label = (torch.from_numpy(array).to(device) for array in case.batch())
        self._batch = moments.permute(0, 3, 1, 2).contiguous(), label
        alphas_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        alphas, sigmas = (
            torch.tensor(np.sqrt(a), dtype=torch.float32, device=device).view(-1, 1, 1, 1)
            for a in (alphas_bar, 1 - alphas_bar)
        )

        def loss(moments, label):
            mean, log_variance = moments.chunk(2, dim=1)
            std = torch.exp(log_variance.clamp(-30, 20) / 2)
            x0 = LATENT_SCALE * (mean + std * torch.randn_like(mean))
            noise = torch.randn_like(x0)
            t = torch.randint(0, 1000, label.shape, device=device)
            drop = torch.rand(label.shape, device=device) < LABEL_DROPOUT
            x = (alphas[t] * x0 + sigmas[t] * noise).to(dtype)
            prediction = model(x, t, torch.where(drop, 1000, label), return_dict=False)[0]
            return torch.nn.functional.mse_loss(prediction.float(), noise)

        self._loss = torch.compile(loss, mode=mode) if mode else loss
        self.facts = {"parameters": sum(p.numel() for p in self._parameters)}

    def send(self):
        torch = self._torch
        with torch.autocast("cuda" if self._gpu else "cpu", torch.bfloat16, self._autocast):
            loss = self._loss(*self._batch)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._parameters, 1 - EMA_DECAY)
        return loss.detach()

    def wait(self):
        if self._gpu:
            self._torch.cuda.synchronize()

    def rest(self):
        if self._gpu:
            self._torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
