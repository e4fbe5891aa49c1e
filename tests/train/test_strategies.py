"""Several devices and several machines train what one device would."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models.codec import load
from models.io.errors import UserError
from train import callbacks, devices, fit
from train.options import FitOptions

WORKER = Path(__file__).with_name("worker.py")


def start(path, result, cpus, tf_config=None, codec="tiny", **options) -> subprocess.Popen:
    """Starts a training process."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    environment.update(CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="2")
    if tf_config:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    options = {"train_path": str(path), "patchsize": 32, "batchsize": 4, "seed": 5, "clipnorm": 0, **options}
    command = [sys.executable, str(WORKER), codec, str(cpus), str(result), json.dumps(options)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def state(result) -> dict[str, np.ndarray]:
    """Weights and optimizer state: Adam's first step hardly shows the size of a gradient, its moments do."""
    with np.load(result) as arrays:
        return {name: arrays[name] for name in arrays.files if name.startswith(("weight", "optimizer"))}


def assert_same_state(left, right):
    left, right = state(left), state(right)
    assert left.keys() == right.keys() and len(left) > 12
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=1e-3, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("codec", ["tiny", "elic"])
def test_two_devices_take_the_first_step_of_one(tmp_path, pictures, codec):
    options = dict(codec=codec, train_glob=pictures, epochs=1, steps_per_epoch=1)
    one = start(tmp_path / "one", tmp_path / "one.npz", 1, strategy="one_device", **options)
    two = start(tmp_path / "two", tmp_path / "two.npz", 2, strategy="mirrored", **options)
    finish(one), finish(two)
    with np.load(tmp_path / "one.npz") as first, np.load(tmp_path / "two.npz") as second:
        assert (first["replicas"], second["replicas"]) == (1, 2)
        np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-5)
        np.testing.assert_allclose(first["val_loss"], second["val_loss"], rtol=1e-5)
    assert_same_state(tmp_path / "one.npz", tmp_path / "two.npz")
    if codec == "elic":
        picture = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
        for name in ("best", "final"):
            trained = load(tmp_path / "two" / f"{name}.safetensors")
            assert trained.decompress(trained.compress(picture)).shape == picture.shape


def test_soap_on_two_devices_loses_what_it_loses_on_one(tmp_path, pictures):
    options = dict(train_glob=pictures, epochs=2, steps_per_epoch=3, optimizer="soap")
    one = start(tmp_path / "one", tmp_path / "one.npz", 1, strategy="one_device", **options)
    two = start(tmp_path / "two", tmp_path / "two.npz", 2, strategy="mirrored", **options)
    finish(one), finish(two)
    with np.load(tmp_path / "one.npz") as first, np.load(tmp_path / "two.npz") as second:
        assert (first["replicas"], second["replicas"]) == (1, 2)
        for name in ("loss", "val_loss"):
            np.testing.assert_allclose(first[name], second[name], rtol=1e-3)


def start_two(tmp_path, **options) -> list[subprocess.Popen]:
    """Starts two workers of one training, with the results worker0.npz and worker1.npz."""
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    workers = []
    for index in range(2):
        tf_config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        result = tmp_path / f"worker{index}.npz"
        workers.append(start(tmp_path / "both", result, 1, tf_config, strategy="auto", **options))
    return workers


def test_two_workers_train_as_one_and_write_one_checkpoint(tmp_path, pictures):
    options = dict(train_glob=pictures, epochs=2, steps_per_epoch=2, ema=0.5)
    alone = start(tmp_path / "alone", tmp_path / "alone.npz", 1, strategy="one_device", **options)
    workers = start_two(tmp_path, **options)
    outputs = [finish(process) for process in (*workers, alone)]
    for index in range(2):
        assert_same_state(tmp_path / f"worker{index}.npz", tmp_path / "alone.npz")
        with np.load(tmp_path / f"worker{index}.npz") as arrays, np.load(tmp_path / "alone.npz") as reference:
            assert arrays["replicas"] == 2
            assert len(arrays["saved"]) == (2 if index == 0 else 0)
            np.testing.assert_allclose(arrays["loss"], reference["loss"], rtol=1e-5)
            np.testing.assert_allclose(arrays["val_loss"], reference["val_loss"], rtol=1e-5)
    assert "epoch 2: loss" in outputs[0] and "epoch" not in outputs[1]

    def names(folder):
        files = sorted(str(p.relative_to(tmp_path / folder)) for p in (tmp_path / folder).rglob("*"))
        return [name for name in files if "events.out" not in name], len(files)

    assert names("both") == names("alone")
    assert (tmp_path / "both" / "log.csv").read_text().count("\n") == 3


def test_workers_share_the_order_of_patches_but_not_the_noise(tmp_path, pictures):
    options = dict(codec="noisy", seed=None, train_glob=pictures, epochs=1, steps_per_epoch=3)
    for process in start_two(tmp_path, **options):
        finish(process)
    assert_same_state(tmp_path / "worker0.npz", tmp_path / "worker1.npz")
    with np.load(tmp_path / "worker0.npz") as first, np.load(tmp_path / "worker1.npz") as second:
        np.testing.assert_array_equal(first["seeds"], second["seeds"])
        assert len(first["seeds"]) == 1
        assert len(first["drawn"]) == len(second["drawn"]) == 3
        assert not set(first["drawn"]) & set(second["drawn"])


def test_the_seed_and_the_number_of_a_worker(monkeypatch):
    options = FitOptions("run", "*.png")
    monkeypatch.setattr(devices, "several_workers", lambda strategy: True)
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    seeds, numbers = set(), []
    for kind, index in (("chief", 0), ("worker", 0), ("worker", "1")):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
        seeds.add(devices.data_seed(options, None))
        numbers.append(devices.worker_index())
        assert devices.data_seed(dataclasses.replace(options, seed=7), None) == 7
    assert numbers == [0, 1, 2]
    assert len(seeds) == 1 and 0 <= min(seeds) < 2**32
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["b:1", "d:1"]}}))
    assert devices.data_seed(options, None) not in seeds


def test_only_the_first_worker_writes_the_log(tmp_path):
    run = fit.Run(FitOptions(str(tmp_path), "*.png"))
    for chief in (True, False):
        found = run.callbacks(callbacks.Backup(str(tmp_path)), chief)
        assert any(isinstance(c, tf.keras.callbacks.CSVLogger) for c in found) == chief


def test_which_strategy_is_chosen(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert devices.make_strategy("auto").num_replicas_in_sync == 1
    assert not devices.several_workers(devices.make_strategy("one_device"))
    with pytest.raises(UserError, match="TF_CONFIG"):
        devices.make_strategy("multi_worker")
    for broken in ("{", "[]", '"x"'):
        monkeypatch.setenv("TF_CONFIG", broken)
        with pytest.raises(UserError, match="TF_CONFIG"):
            devices.make_strategy("auto")


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path, pictures):
    process = start(tmp_path / "run", tmp_path / "r.npz", 2, train_glob=pictures, batchsize=3, strategy="mirrored")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "UserError: --batchsize 3: cannot be shared among 2 devices" in output
