"""The benchmarks time what they say, for every model of the zoo. How long that takes is no matter here."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from toy import Toy, ToyConfig

from eval.bench import coding as bench
from eval.bench import train as bench_train
from models import cwic, elic
from models.codec import load, registry
from models.entropy import rans
from models.tools import restoration
from train.optimizer import FusedAdam, make_optimizer

# --- images there and back -------------------------------------------------------------------------------------


class Clock:
    """In place of the module `time`: what passes only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter

    def slow(self, monkeypatch, owner, attribute, seconds):
        """Lets a function take so long."""
        function = getattr(owner, attribute)

        def run(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, run)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


def test_what_is_timed_within_counts_once(clock):
    watch = bench.Stopwatch()

    def take(seconds):
        clock.now += seconds

    def outer():
        take(1)
        watch.timed("inner", take)(2)
        watch.timed("inner", take)(4)

    watch.timed("outer", outer)()
    watch.timed("outer", take)(8)
    assert watch.seconds == {"outer": 9, "inner": 6}


@pytest.mark.parametrize("filters", [False, True])
def test_each_stage_has_its_own_seconds(filters, clock, monkeypatch, tiny_weights, crop, capsys):
    """The sender's synthesis is the filter's, and neither is the entropy networks'."""
    codec = load(tiny_weights)
    if filters:
        codec.enable_filter()
    clock.slow(monkeypatch, codec, "analyse", 1)
    clock.slow(monkeypatch, codec, "hyper_analysis", 2)
    clock.slow(monkeypatch, codec.hyper_synthesis, "run", 4)
    clock.slow(monkeypatch, codec, "reconstruct", 8)
    clock.slow(monkeypatch, restoration, "fit", 16)
    clock.slow(monkeypatch, restoration, "apply", 32)
    for coder in (rans.RansEncoder, rans.RansDecoder):
        clock.slow(monkeypatch, coder, "finish", 64)
    found = bench.measure_round_trip(codec, crop(40, 50))
    parts = {
        direction: {part: found[f"{direction} {part}"] for part in ("analysis", bench.REST, "coding", *more)}
        for direction, more in (("compress", ["filter"]), ("decompress", ["synthesis", "filter"]))
    }
    assert parts == {
        "compress": {"analysis": 3, bench.REST: 4, "coding": 64, "filter": 24 * filters},
        "decompress": {"analysis": 0, bench.REST: 4, "coding": 64, "synthesis": 8, "filter": 32 * filters},
    }
    assert {name: found[name] for name in parts} == {name: sum(values.values()) for name, values in parts.items()}
    bench.print_round_trip(codec, crop(40, 50), [found])
    lines = capsys.readouterr().out.splitlines()
    assert f"{bench.REST} 4.000" in lines[0] and f"{bench.REST} 4.000" in lines[1]
    assert ["filter 24.000" in lines[0], "filter 32.000" in lines[1]] == [filters, filters]
    assert [line.count("filter") for line in lines[:2]] == [filters, filters]


def test_what_is_coded_of_a_filter_is_coding(clock, monkeypatch, tiny_weights, crop):
    codec = load(tiny_weights)
    codec.enable_filter()
    coded = []
    code = rans.RansEncoder.code

    def slow_code(*args, **kwargs):
        clock.now += 1
        coded.append(1)
        return code(*args, **kwargs)

    monkeypatch.setattr(rans.RansEncoder, "code", slow_code)
    found = bench.measure_round_trip(codec, crop(40, 50))
    assert found["compress coding"] == found["compress"] == len(coded) > 0
    assert found["compress filter"] == 0


@pytest.mark.parametrize("model", registry.MODEL_IDS.values())
def test_every_model(model, golden_weights, crop, capsys):
    path = golden_weights(model)
    codec, what = bench.chosen_codec(model, path=path)
    assert what == f"{model} (weights {path.name})"
    image = crop(40, 50)
    rounds = [bench.measure_round_trip(codec, image) for _ in range(2)]
    assert [figures["bytes"] for figures in rounds] == [len(load(path).compress(image))] * 2
    for direction, parts in bench.PARTS.items():
        assert sum(rounds[0][f"{direction} {part}"] for part in parts) == pytest.approx(rounds[0][direction])
    bench.print_round_trip(codec, image, rounds)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["compress", "decompress", "synthesis:", "file:"]
    assert lines[3].startswith(f"file: {rounds[0]['bytes']} bytes")


@pytest.mark.parametrize("model", [elic, cwic])
def test_random_weights(model, monkeypatch, tiny, tiny_cwic, crop):
    """Of a preset without trained ones."""
    name = "elic" if model is elic else "cwic"
    monkeypatch.setitem(model.PRESETS, "tiny", (tiny if model is elic else tiny_cwic).config)
    codec, what = bench.chosen_codec(name, "tiny")
    assert what == f"{name} tiny (random weights{', typical latents' * (model is elic)})"
    assert bench.measure_round_trip(codec, crop(40, 50))["bytes"] > 20


def test_the_program(monkeypatch, golden_weights, crop, tmp_path, capsys):
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda count: None)  # TensorFlow runs
    Image.fromarray(crop(40, 50)).save(tmp_path / "picture.png")
    bench.main(
        ["--model", "cwic", "--weights", str(golden_weights("cwic")), "--rounds", "1"]
        + ["--image", str(tmp_path / "picture.png"), "--threads", "2"]
    )
    out = capsys.readouterr().out
    assert out.startswith("cwic (weights cwic_tiny.safetensors), 50x40, 2 threads\n")
    assert "\ntraced: compress " in out and "\ntraced: decompress " in out
    assert re.search(r"\npeak memory of this process: \d+\.\d\d GiB\n$", out)


def error_of(main, *argv) -> str:
    with pytest.raises(SystemExit) as raised:
        main(argv)
    message = raised.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message  # so the exit code is 1
    return message


@pytest.mark.parametrize("program", [bench, bench_train])
def test_unknown_names_are_one_line(program, monkeypatch):
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda count: None)
    assert "no model is called 'foo'; there are: elic, " in error_of(program.main, "--model", "foo")
    assert "elic has no preset 'foo'; there are: base, " in error_of(program.main, "--preset", "foo")
    assert "there are: low, high, small" in error_of(program.main, "--model", "cwic", "--preset", "base")


def test_weights_of_another_model_are_one_line(monkeypatch, tiny_cwic_weights, tmp_path):
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda count: None)
    assert "weights of cwic, not of elic" in error_of(bench.main, "--weights", str(tiny_cwic_weights))
    assert "nowhere" in error_of(bench.main, "--weights", str(tmp_path / "nowhere.safetensors"))


def test_the_preset_of_a_model_is_its_first(monkeypatch):
    monkeypatch.setattr(bench, "random_codec", lambda entry, preset: preset)
    assert bench.chosen_codec("elic") == ("base", "elic base (random weights, typical latents)")
    assert bench.chosen_codec("cwic") == ("low", "cwic low (random weights)")


# --- training steps ----------------------------------------------------------------------------------------------


class WatchedToy(Toy):
    """Remembers the function that noise came from in each trace of a step."""

    uniform: list = []

    def train_step(self, data):
        self.uniform.append(tf.random.uniform)
        return super().train_step(data)


@pytest.fixture
def toy(monkeypatch):
    """The entry of a model "toy", which the programs know."""
    card = registry.Card("toy", 255, "A toy", {"small": registry.Preset("")})
    entry = registry.Entry(card, WatchedToy, ToyConfig, {"small": ToyConfig()})
    monkeypatch.setattr(WatchedToy, "entry", entry)
    monkeypatch.setattr(WatchedToy, "uniform", [])
    monkeypatch.setitem(registry.CARDS, "toy", card)
    monkeypatch.setitem(registry._ENTRIES, "toy", entry)
    return entry


@pytest.mark.parametrize("jit_compile", [False, True])
def test_steps_are_those_of_train(jit_compile, toy):
    options = bench_train.train_options(2, 16, "bfloat16")
    codec = bench_train.compiled_codec(WatchedToy, options, jit_compile)
    assert codec.analysis.compute_dtype == "bfloat16"
    assert isinstance(codec.optimizer, FusedAdam)
    assert codec.optimizer.get_config() == make_optimizer(options).get_config()
    before = codec.analysis.kernel.numpy()
    steps = bench_train.tensorflow_steps(codec, np.full([2, 16, 16, 3], 200, np.uint8))
    assert steps(2) > 0 and steps(1) > 0
    assert int(codec.optimizer.iterations) == 3 and np.any(codec.analysis.kernel.numpy() != before)
    # The noise is TensorFlow's own, not the hash that an exported step has.
    assert toy.codec.uniform and all(function is tf.random.uniform for function in toy.codec.uniform)


def test_an_exported_step_is_that_of_train(toy, tmp_path):
    options = bench_train.train_options(2, 16, "off")
    bench_train.export(WatchedToy, options, str(tmp_path / "step"))
    step = json.loads((tmp_path / "step" / "step.json").read_text())
    assert step["batch"] == [2, 16, 16, 3]
    assert step["options"]["clipnorm"] == options.clipnorm and step["learning_rate"] == pytest.approx(1e-4)
    assert all(function is not tf.random.uniform for function in toy.codec.uniform)


FLAGS = ["--model", "toy", "--batchsize", "2", "--patchsize", "16", "--rounds", "2", "--steps", "1"]


def test_the_program_for_training(toy, capsys):
    bench_train.main([*FLAGS, "--lambda", "0.02", "--runtimes", "tf", "--precisions", "off"])
    first, title, figures = capsys.readouterr().out.splitlines()
    assert first.startswith("tf float32: first two steps after ")
    assert title == "toy small, 2 patches of 16², 2 rounds in turns"
    assert re.fullmatch(r"tf float32 +\d+\.\d images/s, [\d.]+ s a step \([\d.]+ to [\d.]+\)", figures)


def test_the_program_for_training_under_jax(toy, jax_python, capsys):
    bench_train.main([*FLAGS, "--runtimes", "pjrt", "--precisions", "bfloat16", "--pjrt_python", jax_python])
    assert re.search(r"\npjrt bfloat16 \(.+\) +\d+\.\d images/s", capsys.readouterr().out)


def test_flags_of_a_model_are_those_of_train():
    args, own = bench_train.parsed(["--model", "cwic", "--joint_rate"])
    assert own.for_training(args).joint_rate
    args, own = bench_train.parsed(["--lambda", "0.003,0.01"])
    assert own.card.name == "elic" and args.lmbda == (0.003, 0.01)
    assert "--ratio" in error_of(bench_train.main, "--model", "cwic", "--ratio", "0.5")
