"""Trains the stand-in in a process of its own, where devices and TF_CONFIG can be chosen.

    python worker.py CPUS RESULT OPTIONS

CPUS: number of logical CPU devices. RESULT: .npz that gets weights, optimizer state and what was saved.
OPTIONS: `FitOptions` as JSON.
"""

import json
import sys

import numpy as np
import tensorflow as tf
from standin import TinyCodec

from train import fit
from train.options import FitOptions


def main(cpus: str, result: str, options: str) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(cpus))
    trained = fit.fit(TinyCodec, FitOptions(**json.loads(options)))
    codec = trained.codec
    arrays = {f"weight{i}": v.numpy() for i, v in enumerate(codec.trainable_variables)}
    arrays.update({f"optimizer{i}": v.numpy() for i, v in enumerate(codec.optimizer.variables)})
    np.savez(
        result,
        saved=np.array(codec.saved, dtype=str),
        loss=trained.history["loss"],
        val_loss=trained.history["val_loss"],
        replicas=codec.distribute_strategy.num_replicas_in_sync,
        **arrays,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
