"""Ways to make experts of a dense perceptron."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dit_jax.errors import InputError
from dit_jax.layers.mlp import Mlp
from dit_jax.moe import MlpExperts, MoE
from dit_jax.moe.experts import Params
from dit_jax.moe.routers import Dense2MoERouter, TopKRouter
from dit_jax.randomness import Purpose, key_for
from dit_jax.run import Run
from dit_jax.upcycling.importance import neuron_importance


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """A way to turn a dense perceptron into experts; its fields are its options.

    Attributes:
      experts: number of experts that a router chooses between.
      top_k: experts a token.
    """

    experts: int = 8
    top_k: int = 2

    def __post_init__(self):
        if self.experts < 1:
            raise InputError(f"--experts {self.experts}: it must be at least 1")
        if not 1 <= self.top_k <= self.experts:
            raise InputError(
                f"--top-k {self.top_k} of {self.experts} experts: choose from 1 to all"
            )

    @abc.abstractmethod
    def mixer(self, dense: Mlp, width: int) -> MoE:
        """The layer that takes the place of a dense one, for tokens of `width`.

        Raises:
          InputError: the neurons do not divide as the options ask.
        """

    @abc.abstractmethod
    def layers(self, run: Run, seed: int) -> Callable[[int], Params]:
        """Returns a function from the number of a block to its layer's parameters.

        The router's are not among them: there is nothing to make them of.

        Raises:
          InputError: the run's data, where they are needed, cannot be opened.
        """


@dataclasses.dataclass(frozen=True)
class Copy(Method):
    """Every expert is the dense layer (Sparse Upcycling, Komatsuzaki et al., arXiv 2212.05055).

    The weights of a token's experts add up to one, so the network's function is the dense one's.
    With one expert a token that weight is one whatever the router says, which then learns from its
    own losses alone.
    """

    def mixer(self, dense, width):
        router = TopKRouter(experts=self.experts, top_k=self.top_k)
        return MoE(router, MlpExperts(ratio=dense.ratio))

    def layers(self, run, seed):
        del seed
        dense = _dense(run)

        def layer(number: int) -> Params:
            copies = lambda leaf: np.repeat(leaf[None, number], self.experts, axis=0)  # noqa: E731
            return {"experts": jax.tree.map(copies, dense)}

        return layer


@dataclasses.dataclass(frozen=True)
class Noise(Copy):
    """Copies that differ from the start: each has Gaussian noise of its own on its weights.

    Attributes:
      experts: number of experts that a router chooses between.
      top_k: experts a token.
      noise: standard deviation of the noise over that of the matrix it is added to.
    """

    noise: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.noise < math.inf:
            raise InputError(f"--noise {self.noise}: it must be above 0 (--method copy has none)")

    def layers(self, run, seed):
        copies = super().layers(run, seed)

        def layer(number: int) -> Params:
            experts = copies(number)["experts"]
            keys = jax.random.split(key_for(seed, number, Purpose.NOISE))
            for name, key in zip(("fc1", "fc2"), keys):
                kernel = experts[name]["kernel"]
                scale = self.noise * kernel[0].std()
                experts[name]["kernel"] = kernel + scale * jax.random.normal(key, kernel.shape)
            return {"experts": experts}

        return layer


@dataclasses.dataclass(frozen=True)
class Taylor(Method):
    """The dense layer's neurons, divided (Dense2MoE, Zheng et al., arXiv 2510.09094).

    Those that matter most (`neuron_importance`) are the shared expert, which also has the second
    bias; the others are dealt out to the routed experts. With all experts and weights of one, the
    layer is the dense one. By default 37.5 % of the neurons are active, as in the paper: the shared
    quarter, and 2 of 12 sixteenths.

    The paper's abstract states that share and the Taylor metric. How many experts there are, how
    large the shared one is, and how the rest is dealt out are chosen here. Its distillation and its
    mixture of blocks are not part of this.

    Attributes:
      experts: number of experts that a router chooses between.
      top_k: experts a token.
      shared: share of the neurons that every token passes.
      batches: batches of the training data that the importance is measured on.
      batch_size: images in each.
    """

    experts: int = 12
    shared: float = 0.25
    batches: int = 8
    batch_size: int = 64

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.shared < 1:
            raise InputError(f"--shared {self.shared}: it must lie between 0 and 1")
        for option, value in (("batches", self.batches), ("batch-size", self.batch_size)):
            if value < 1:
                raise InputError(f"--{option} {value}: it must be at least 1")

    def mixer(self, dense, width):
        shared, routed = self._sizes(int(dense.ratio * width))
        router = Dense2MoERouter(experts=self.experts, top_k=self.top_k)
        shared_expert = Mlp(ratio=ratio_of(shared, width))
        return MoE(router, MlpExperts(ratio=ratio_of(routed, width)), shared_expert)

    def layers(self, run, seed):
        dense = _dense(run)
        importance = neuron_importance(run, self.batches, self.batch_size, seed)
        shared, routed = self._sizes(importance.shape[1])

        def layer(number: int) -> Params:
            ranked = np.argsort(-importance[number], kind="stable")
            own, dealt = ranked[:shared], deal(ranked[shared:], self.experts)
            return divide(jax.tree.map(lambda leaf: leaf[number], dense), own, dealt)

        return layer

    def _sizes(self, neurons: int) -> tuple[int, int]:
        """Number of neurons of the shared expert, and of each routed one."""
        exact = (1 - self.shared) * neurons / self.experts
        routed = round(exact)
        if routed and abs(exact - routed) < 0.01:  # A share of a third is never exact.
            return neurons - self.experts * routed, routed
        nearest = max(1, routed)
        if self.experts * nearest >= neurons:
            raise InputError(
                f"--experts {self.experts} and a shared one are too many for {neurons} neurons: "
                f"choose fewer"
            )
        raise InputError(
            f"--shared {self.shared} leaves {(1 - self.shared) * neurons:g} of {neurons} neurons, "
            f"which do not divide among {self.experts} experts: "
            f"--shared {1 - self.experts * nearest / neurons:.6g} would do"
        )


METHODS: dict[str, type[Method]] = {"copy": Copy, "noise": Noise, "taylor": Taylor}


def make_method(name: str, **options: Any) -> Method:
    """Builds a method of `METHODS` with those of the options that are not None.

    Raises:
      InputError: an option that the method does not have, or a value that it refuses.
    """
    given = {option: value for option, value in options.items() if value is not None}
    known = [field.name for field in dataclasses.fields(METHODS[name])]
    fitting = ", ".join(map(_flag, known))
    for option in given:
        if option not in known:
            raise InputError(f"{_flag(option)} is not for --method {name}: it has {fitting}")
    return METHODS[name](**given)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def deal(ranked: np.ndarray, experts: int) -> np.ndarray:
    """Deals neurons out from the best to the worst, there and back again: [experts, neurons each].

    So the experts' importance is about even. (The paper's rule is not in its abstract.)
    """
    rounds = ranked.reshape(-1, experts).copy()
    rounds[1::2] = rounds[1::2, ::-1]
    return rounds.T


def divide(dense: Params, shared: np.ndarray, routed: np.ndarray) -> Params:
    """Gives a perceptron's neurons to a shared expert [S] and to routed ones [E, R]."""
    fc1, fc2 = dense["fc1"], dense["fc2"]
    into, out, bias = fc1["kernel"].T, fc2["kernel"], fc1["bias"]  # Axis 0 is the neuron.
    nothing = np.zeros((len(routed), out.shape[1]), out.dtype)
    return {
        "shared": {
            "fc1": {"kernel": into[shared].T, "bias": bias[shared]},
            "fc2": {"kernel": out[shared], "bias": fc2["bias"]},
        },
        "experts": {
            "fc1": {"kernel": into[routed].swapaxes(1, 2), "bias": bias[routed]},
            "fc2": {"kernel": out[routed], "bias": nothing},
        },
    }


def _dense(run: Run) -> Params:
    """The dense layers of all blocks, axis 0 the block, on the host."""
    return jax.tree.map(np.asarray, run.params["blocks"]["layers"]["ffn"])


def ratio_of(neurons: int, width: int) -> float:
    """The ratio of which `int(ratio * width)` is `neurons`: a quotient may be rounded down."""
    ratio = neurons / width
    return ratio if int(ratio * width) == neurons else math.nextafter(ratio, math.inf)
