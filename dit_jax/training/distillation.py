"""Distillation: a model learns from a trained one beside the data."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.diffusion import Process
from dit_jax.errors import InputError
from dit_jax.layers.label import drop_labels
from dit_jax.layers.taps import COLLECTION, attention_outputs
from dit_jax.models.output import Output


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A trained run that the model learns from, and what of it; nothing without a teacher.

    Added to the loss are weighted mean squared differences between model and teacher, both at the
    same noised input, time and labels. LiT (arXiv 2501.12976) compares prediction and variance;
    its weights are not public, and the defaults are this library's. CLEAR (arXiv 2412.16112) has
    0.5 for the prediction and 0.5 for the attention of every fourth layer.

    Attributes:
      teacher: run folder or checkpoint; its first average is what teaches.
      prediction: weight of the prediction.
      variance: weight of the output that says the variance, where the process learns one.
      attention: weight of the heads' mixed values, before their projection.
      attention_every: compares the attention of the first layer, and of every so many after it.
    """

    teacher: str | None = None
    prediction: float = 0.5
    variance: float = 0.5
    attention: float = 0.0
    attention_every: int = 4

    def check(self, learned_variance: bool) -> None:
        """Raises InputError where a number makes no sense or there is nothing to learn."""
        if self.teacher is None:
            if self != Distillation():
                raise InputError("distillation has no teacher: set --distillation.teacher")
            return
        weights = (self.prediction, self.variance, self.attention)
        if min(weights) < 0:
            raise InputError(f"--distillation's weights {weights} must not be negative")
        if not (self.prediction or self.attention or (self.variance and learned_variance)):
            raise InputError(
                "distillation compares nothing: set --distillation.prediction or .attention"
            )
        if self.attention_every < 1:
            raise InputError(
                f"--distillation.attention-every is {self.attention_every}: it must be at least 1"
            )


@dataclasses.dataclass(frozen=True)
class Taught:
    """A model in training beside its teacher, with a model's `apply`.

    Labels are dropped here, at the model's rate, so that both see the same ones; but for that the
    teacher runs as it does when it samples.

    Attributes:
      model: what is trained.
      teacher: what it learns from.
      teacher_params: the teacher's parameters.
      options: what is compared.
      process: says whether the models' variance counts.
    """

    model: nn.Module
    teacher: nn.Module
    teacher_params: Any
    options: Distillation
    process: Process

    def apply(
        self,
        variables: dict[str, Any],
        x: jax.Array,
        t: jax.Array,
        condition: dict[str, jax.Array],
        train: bool,
        rngs: dict[str, jax.Array],
    ) -> Output:
        """Returns the model's output, whose `losses` also say how far it is from the teacher's.

        They are `teacher_prediction`, `teacher_variance` and `teacher_attention`, weighted.
        """
        condition, rngs = self._drop_labels(condition, rngs)
        model = self.model.clone(label_dropout=0.0)
        mutable = [COLLECTION] if self.options.attention else []
        options = {"train": train, "rngs": rngs, "mutable": mutable}
        output, tapped = model.apply(variables, x, t, condition, **options)
        frozen = {"params": jax.lax.stop_gradient(self.teacher_params)}
        wanted = self.teacher.apply(frozen, x, t, condition, mutable=mutable)
        found = self._compared(output, tapped, x.shape[-1])
        losses = {
            f"teacher_{name}": getattr(self.options, name) * jnp.square(found[name] - there).mean()
            for name, there in self._compared(*wanted, x.shape[-1]).items()
        }
        return output._replace(aux=output.aux | {"losses": output.aux.get("losses", {}) | losses})

    def _drop_labels(self, condition: dict, rngs: dict) -> tuple[dict, dict]:
        """The labels that both see, and the keys that are left."""
        if not self.model.num_classes:
            return condition, rngs
        key, rest = jax.random.split(rngs["dropout"])
        rate, null = self.model.label_dropout, self.model.num_classes
        label = drop_labels(key, condition["label"], rate, null)
        return condition | {"label": label}, rngs | {"dropout": rest}

    def _compared(self, output: Output, tapped: dict[str, Any], channels: int) -> dict:
        """What is compared, float32, by the name of its weight."""
        options, found = self.options, {}
        if options.prediction:
            found["prediction"] = output.prediction[..., :channels]
        if options.variance and self.process.output_channels(channels) > channels:
            found["variance"] = output.prediction[..., channels:]
        if options.attention:
            attention = attention_outputs(tapped, options.attention_every)
            found["attention"] = attention.astype(jnp.float32)
        return found
