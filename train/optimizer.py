"""The optimizer of a run and its learning rate."""

from __future__ import annotations

import tensorflow as tf

from train.options import FitOptions
from train.soap import SOAP

schedules = tf.keras.optimizers.schedules


class FusedAdam(tf.keras.optimizers.Adam):
    """Keras' Adam, of which a variable's update is one kernel instead of twelve.

    The numbers are the same but for their rounding, and each of the twelve reads and writes as much memory as the
    variable has: on a CPU all of an update of 12.6 million (clipped, averaged) takes 0.052 s instead of 0.072 s.
    """

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
