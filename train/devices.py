"""Devices, workers (`tf.distribute`) and precision of a training."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zlib

import tensorflow as tf

from models.codec.precision import scope
from models.io.errors import UserError
from train.options import FitOptions


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of a `FitOptions.strategy`.

    Raises:
      UserError: `multi_worker` without a cluster in TF_CONFIG.
    """
    workers = len(_cluster().get("worker", [])) + len(_cluster().get("chief", []))
    devices = tf.config.list_logical_devices("GPU") if workers < 2 else []
    if name == "auto":
        name = "multi_worker" if workers > 1 else "mirrored" if len(devices) > 1 else "one_device"
    if name == "multi_worker":
        if not workers:
            raise UserError("--strategy multi_worker: the environment variable TF_CONFIG names no workers")
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored":
        # Without GPUs, TensorFlow takes all logical CPU devices.
        return tf.distribute.MirroredStrategy([d.name for d in devices] or _names("CPU"))
    # Not OneDeviceStrategy, which Keras' BackupAndRestore refuses; the default one uses the first GPU.
    return tf.distribute.get_strategy()


def _names(kind: str) -> list[str]:
    return [device.name for device in tf.config.list_logical_devices(kind)]


def _tf_config(part: str) -> dict:
    """`cluster` (addresses by kind of task) or `task` (this one's) of TF_CONFIG; empty if there is none."""
    try:
        return json.loads(os.environ.get("TF_CONFIG") or "{}").get(part, {})
    except (ValueError, AttributeError) as error:
        raise UserError(f"the environment variable TF_CONFIG is not what TensorFlow expects: {error}") from error


def _cluster() -> dict[str, list[str]]:
    return _tf_config("cluster")


def worker_index() -> int:
    """The number of this process among those of the cluster in TF_CONFIG that train; a chief is the first."""
    task = _tf_config("task")
    before = len(_cluster().get("chief", [])) if task.get("type") == "worker" else 0
    return before + int(task.get("index", 0))


def data_seed(options: FitOptions, strategy: tf.distribute.Strategy) -> int:
    """Seed of order and place of the patches, 0..2**32-1: the same for all workers, which share out one order."""
    if options.seed is not None:
        return options.seed
    if several_workers(strategy):
        # They have not met yet, but all know the same addresses.
        return zlib.crc32(json.dumps(_cluster(), sort_keys=True).encode())
    return secrets.randbits(32)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether this process is the one that writes files."""
    return strategy.extended.should_checkpoint


def several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether other processes, perhaps on other machines, train the same codec."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def precision(name: str) -> contextlib.AbstractContextManager:
    """Layers that are made inside compute in the precision of a `FitOptions.mixed_precision`."""
    return scope(_policy(name))


def _policy(name: str) -> str:
    if name == "auto":
        name = "float16" if tf.config.list_logical_devices("GPU") else "bfloat16"
    return "float32" if name == "off" else f"mixed_{name}"
