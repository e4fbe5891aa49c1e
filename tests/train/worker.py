"""Trains a codec in a process of its own, where devices and TF_CONFIG can be chosen.

    python worker.py CODEC CPUS RESULT OPTIONS

CODEC: `tiny` (the stand-in), `noisy` (the same, which draws a random number in each step) or `elic` (as narrow as it
gets, and without the noise that stands for rounding, so that runs can be compared). CPUS: number of logical CPU
devices. RESULT: .npz that gets weights, optimizer state, losses, the names of the weights files that this process
wrote, the numbers drawn and the seeds of the training patches. OPTIONS: `FitOptions` as JSON.
"""

import json
import sys

import numpy as np
import tensorflow as tf
from standin import TinyCodec

from train import fit
from train.options import FitOptions


def tiny_elic() -> tf.keras.Model:
    from models.elic import ELIC, Config

    # Tracing and optimising ELIC's graph for each device takes longer than running a step of it as it is.
    tf.config.run_functions_eagerly(True)
    tf.random.uniform = lambda shape, *args, dtype=tf.float32, **kwargs: tf.zeros(shape, dtype)
    config = Config(
        widths=(4, 4, 4),
        groups=(2, 4),
        hyper_channels=4,
        hyper_widths=(4, 4),
        context_widths=(4, 4),
        parameter_width=8,
    )
    return ELIC(config, lmbda=0.01)


class NoisyCodec(TinyCodec):
    drawn = []

    def train_step(self, images):
        tf.numpy_function(lambda x: self.drawn.append(float(x)), [tf.random.uniform([])], [])
        return super().train_step(images)


BUILD = {"tiny": TinyCodec, "noisy": NoisyCodec, "elic": tiny_elic}


def main(codec: str, cpus: str, result: str, options: str) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(cpus))
    seeds, dataset = [], fit.training_dataset

    def training_dataset(*args, seed, context=None, **kwargs):
        if context is not None:  # not for calibration
            seeds.append(seed)
        return dataset(*args, seed=seed, context=context, **kwargs)

    fit.training_dataset = training_dataset
    trained = fit.fit(BUILD[codec], FitOptions(**json.loads(options)))
    codec = trained.codec
    arrays = {f"weight{i}": v.numpy() for i, v in enumerate(codec.trainable_variables)}
    arrays.update({f"optimizer{i}": v.numpy() for i, v in enumerate(codec.optimizer.variables)})
    np.savez(
        result,
        saved=np.array(getattr(codec, "saved", []), dtype=str),
        loss=trained.history["loss"],
        val_loss=trained.history["val_loss"],
        drawn=getattr(codec, "drawn", []),
        seeds=seeds,
        replicas=codec.distribute_strategy.num_replicas_in_sync,
        **arrays,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
