"""The optimizer of a run and its learning rate."""

from __future__ import annotations

import math

import tensorflow as tf

from train.options import FitOptions
from train.soap import SOAP

schedules = tf.keras.optimizers.schedules


class ByFanIn:
    """Of an optimizer, which comes behind it among the bases: kernels with many inputs learn more slowly.

    Adam changes each weight by about its learning rate, whatever the gradient; so what a layer gives changes by that
    times the number of its inputs, and a rate that narrow layers need makes wide ones fall apart, or their hidden units
    die. With rates in proportion to 1 / fan-in all layers change as fast (Yang et al., "Tensor Programs V: Tuning Large
    Neural Networks via Zero-Shot Hyperparameter Transfer", 2022).

    Args:
      fan_in: of the kernels that learn at the whole rate; those with more inputs at a lower one. 0: all at the whole.
    """

    def __init__(self, *args, fan_in: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.fan_in = fan_in
        self._share = 1.0

    @property
    def learning_rate(self):
        """That of the variable whose turn it is; the whole one between steps."""
        rate = super().learning_rate
        return rate if self._share == 1 else rate * self._share

    @learning_rate.setter
    def learning_rate(self, rate):
        super(ByFanIn, type(self)).learning_rate.fset(self, rate)

    @tf.autograph.experimental.do_not_convert
    def update_step(self, gradient, variable):
        """See Keras' `Optimizer`."""
        self._share = share_of_rate(variable.shape, self.fan_in)
        try:
            super().update_step(gradient, variable)
        finally:
            self._share = 1.0

    def get_config(self):
        """See Keras' `Optimizer`."""
        return {**super().get_config(), "fan_in": self.fan_in}


def share_of_rate(shape, fan_in: int) -> float:
    """The share of the learning rate that a variable of this shape learns at; see `ByFanIn`.

    Kernels are what has taps, input and output channels: three dimensions at least. Those of transposed convolutions
    have the output before the input; they count as if they had not.
    """
    inputs = math.prod(shape[:-1]) if len(shape) >= 3 else 0
    return fan_in / inputs if 0 < fan_in < inputs else 1.0


class Adam(ByFanIn, tf.keras.optimizers.Adam):
    """Keras' Adam."""


class SOAPByFanIn(ByFanIn, SOAP):
    """`SOAP`."""


class _Fused(tf.keras.optimizers.Adam):
    """Keras' Adam, of which a variable's update is one kernel instead of twelve.

    The numbers are the same but for their rounding, and each of the twelve reads and writes as much memory as the
    variable has: on a CPU all of an update of 12.6 million (clipped, averaged) takes 0.052 s instead of 0.072 s.
    """

    @tf.autograph.experimental.do_not_convert
    def update_step(self, gradient, variable):
        """See Keras' `Optimizer`."""
        if isinstance(gradient, tf.IndexedSlices) or self.amsgrad:
            super().update_step(gradient, variable)
            return
        index = self._index_dict[self._var_key(variable)]
        rate, beta_1, beta_2, epsilon = (
            tf.cast(x, variable.dtype) for x in (self.learning_rate, self.beta_1, self.beta_2, self.epsilon)
        )
        step = tf.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            beta1_power=beta_1**step,
            beta2_power=beta_2**step,
            lr=rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=gradient,
        )


class FusedAdam(ByFanIn, _Fused):
    """Adam, in one kernel a variable."""


def make_optimizer(options: FitOptions) -> tf.keras.optimizers.Optimizer:
    """Adam or SOAP, clipped and averaged as the settings say; under a time budget `TimeBudget` sets its learning rate.

    `Model.compile` wraps it for loss scaling where the model computes in float16.
    """
    kind = {"adam": FusedAdam, "soap": SOAPByFanIn}[options.optimizer]
    return kind(
        options.learning_rate if options.minutes else make_schedule(options),
        global_clipnorm=options.clipnorm or None,
        use_ema=options.ema > 0,
        ema_momentum=options.ema or 0.99,
        fan_in=options.fan_in,
    )


def make_schedule(options: FitOptions) -> schedules.LearningRateSchedule:
    """The learning rate by step, over `options.total_steps`."""
    if options.schedule == "cosine":
        decay = schedules.CosineDecay(options.learning_rate, options.total_steps)
    else:
        # The last step at the full rate; Keras' boundaries belong to what is before them.
        last = round(options.total_steps * (1 - options.drop_share)) - 1
        decay = schedules.PiecewiseConstantDecay([last], [options.learning_rate, options.learning_rate / 10])
    return WarmUp(decay, options.warmup_steps) if options.warmup_steps else decay


class WarmUp(schedules.LearningRateSchedule):
    """Another schedule, the first `steps` steps of which rise to it on a straight line."""

    def __init__(self, schedule: schedules.LearningRateSchedule, steps: int):
        self.schedule, self.steps = schedule, steps

    def __call__(self, step):
        return self.schedule(step) * tf.minimum(1.0, (tf.cast(step, tf.float32) + 1) / self.steps)

    def get_config(self):
        """See Keras' `LearningRateSchedule`."""
        return {"schedule": self.schedule, "steps": self.steps}
