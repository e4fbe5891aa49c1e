"""The optimizer of a run and its learning rate."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from train.options import FitOptions
from train.soap import SOAP

schedules = tf.keras.optimizers.schedules


class _Scalars(NamedTuple):
    """What the updates of all variables of a step share, float32 scalars."""

    graph: tf.Graph | None
    rate: tf.Tensor
    beta_1: tf.Tensor
    beta_2: tf.Tensor
    epsilon: tf.Tensor
    beta_1_power: tf.Tensor
    beta_2_power: tf.Tensor


class FusedAdam(tf.keras.optimizers.Adam):
    """Keras' Adam, of which a variable's update is one kernel instead of twelve.

    The numbers are the same but for their rounding, and each of the twelve reads and writes as much memory as the
    variable has: on a CPU all of an update of 12.6 million (clipped, averaged) takes 0.052 s instead of 0.072 s. And a
    graph of hundreds of variables is traced in less time.
    """

    _scalars: _Scalars | None = None

    def apply_gradients(self, *args, **kwargs):
        """See Keras' `Optimizer`."""
        object.__setattr__(self, "_scalars", None)
        return super().apply_gradients(*args, **kwargs)

    def update_step(self, gradient, variable):
        """See Keras' `Optimizer`."""
        if isinstance(gradient, tf.IndexedSlices) or self.amsgrad:
            super().update_step(gradient, variable)
            return
        index, scalars = self._index_dict[self._var_key(variable)], self._shared()
        rate, beta_1, beta_2, epsilon, power_1, power_2 = (tf.cast(x, variable.dtype) for x in scalars[1:])
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            beta1_power=power_1,
            beta2_power=power_2,
            lr=rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=gradient,
        )

    def _shared(self) -> _Scalars:
        """Computes the scalars once a step and graph: with XLA each variable is updated in a graph of its own."""
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        if self._scalars is None or self._scalars.graph is not graph:
            step = tf.cast(self.iterations + 1, tf.float32)
            values = (self.learning_rate, self.beta_1, self.beta_2, self.epsilon)
            rate, beta_1, beta_2, epsilon = (tf.convert_to_tensor(x, tf.float32) for x in values)
            scalars = _Scalars(graph, rate, beta_1, beta_2, epsilon, beta_1**step, beta_2**step)
            object.__setattr__(self, "_scalars", scalars)  # past Keras' tracking of what a checkpoint holds
        return self._scalars


def make_optimizer(options: FitOptions) -> tf.keras.optimizers.Optimizer:
    """Makes Adam or SOAP, clipped and averaged as the settings say; with `minutes` `TimeBudget` sets its learning rate.

    `Model.compile` wraps it for loss scaling where the model computes in float16.
    """
    # Another optimizer has to be a `tf.keras.optimizers.Optimizer` (not a legacy one) whose learning rate can be set,
    # whose `get_config` and `from_config` round-trip (adversarial steps, export for PJRT) and whose update compiles
    # under XLA; its name goes into `train.options.OPTIMIZERS`.
    kind = {"adam": FusedAdam, "soap": SOAP}[options.optimizer]
    return kind(
        options.learning_rate if options.minutes else make_schedule(options),
        global_clipnorm=options.clipnorm or None,
        use_ema=options.ema > 0,
        ema_momentum=options.ema or 0.99,
    )


def make_schedule(options: FitOptions) -> schedules.LearningRateSchedule:
    """Makes the schedule of the learning rate over `options.total_steps`."""
    if options.schedule == "cosine":
        decay = schedules.CosineDecay(options.learning_rate, options.total_steps)
    else:
        # The last step at the full rate; Keras counts a boundary to the piece before it.
        last = round(options.total_steps * (1 - options.drop_share)) - 1
        decay = schedules.PiecewiseConstantDecay([last], [options.learning_rate, options.learning_rate / 10])
    return WarmUp(decay, options.warmup_steps) if options.warmup_steps else decay


class WarmUp(schedules.LearningRateSchedule):
    """Wraps a schedule: over the first `steps` steps the rate rises to it on a straight line."""

    def __init__(self, schedule: schedules.LearningRateSchedule, steps: int):
        self.schedule, self.steps = schedule, steps

    def __call__(self, step):
        return self.schedule(step) * tf.minimum(1.0, (tf.cast(step, tf.float32) + 1) / self.steps)

    def get_config(self):
        """See Keras' `LearningRateSchedule`."""
        return {"schedule": self.schedule, "steps": self.steps}
