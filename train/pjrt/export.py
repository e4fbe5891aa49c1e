"""Trains outside TensorFlow: a codec's compiled training step leaves as XLA HLO, trained weights come back.

    codec ─ export ─▶ step.hlo  step.json  start/          (here, TensorFlow)
                              │
                      train/pjrt/run.py                    (anywhere, JAX: no TensorFlow)
                              │
    codec ◀─ import_state ─ checkpoint-*/state.json  weights-*.npz

TensorFlow 2.14 knows no accelerator newer than CUDA 11.8; what XLA has compiled knows nothing of TensorFlow
and runs under any PJRT runtime. All that a codec's `train_step` does goes along: losses, clipping, moving
averages, several optimizers. Only what XLA cannot compile must stay out of it: TFC's range coder and table
building.

Random numbers: XLA makes `tf.random.uniform` an HLO `rng`, whose stream is the device's own and begins anew
in every process; and of `tf.random.stateless_uniform` it makes other numbers than TensorFlow's kernels do. So
in the exported step random numbers are a hash of the optimizer's step: see `seeded_noise`.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from models.codec import Codec, registry, storage, weights
from models.io.errors import UserError
from train.data import Crops, Source, open_data
from train.devices import precision
from train.fit import FINAL, calibration_patches, resume_mismatch, user_errors
from train.optimizer import FusedAdam, make_optimizer
from train.options import FitOptions
from train.pjrt import options as pjrt_options
from train.pjrt import run as pjrt_run

logger = logging.getLogger(__name__)

#: Weights of more bytes than this start as float16, as they do in a weights file.
FULL_PRECISION_BYTES = 1 << 16

RUNNER = "pjrt_run.py"


# --- random numbers ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def seeded_noise(step: tf.Tensor, seed: int = 0, scale: float = 1.0) -> Iterator[None]:
    """Makes `tf.random.uniform` and `tf.random.normal` functions of `step` and the number of the call.

    The same numbers come on every device, under TensorFlow as under XLA, and go on after a resume. TFC's
    entropy models, which draw the training noise, offer no other way in.

    Args:
      step: integer scalar, the optimizer's `iterations`.
      seed: another one gives other noise.
      scale: 0 multiplies the noise away, for comparisons without it.
    """
    calls = itertools.count()

    def unit(shape) -> tf.Tensor:
        """float32 above 0 and below 1."""
        call = tf.constant(next(calls), tf.uint32)
        key = _hash(_hash(tf.constant(seed % 2**32, tf.uint32)) + tf.cast(step, tf.uint32))
        place = tf.cast(tf.range(tf.reduce_prod(shape)), tf.uint32)
        # Hashed twice with two keys: streams of different calls are not shifts of each other.
        bits = _hash(_hash(place + _hash(key + call)) + key)
        exact = tf.cast(tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32)), tf.float32)
        return tf.reshape((exact + 0.5) * 2.0**-23, shape)

    def uniform(shape, minval=0, maxval=None, dtype=tf.float32, seed=None, name=None):
        maxval = 1 if maxval is None else maxval
        low, high = tf.cast(minval, tf.float32), tf.cast(maxval, tf.float32)
        if not tf.as_dtype(dtype).is_floating:
            return tf.cast(tf.floor(low + (high - low) * unit(shape)), dtype)
        return tf.cast(scale * (low + (high - low) * unit(shape)), dtype)

    def normal(shape, mean=0.0, stddev=1.0, dtype=tf.float32, seed=None, name=None):
        value = np.sqrt(2.0) * tf.math.erfinv(2 * unit(shape) - 1)
        return tf.cast(mean + scale * stddev * value, dtype)

    before = tf.random.uniform, tf.random.normal
    tf.random.uniform, tf.random.normal = uniform, normal
    try:
        yield
    finally:
        tf.random.uniform, tf.random.normal = before


def _hash(x: tf.Tensor) -> tf.Tensor:
    """Mixes the bits of uint32 numbers (C. Wellons' "lowbias32")."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
        x *= tf.constant(factor, tf.uint32)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(16, tf.uint32)))


# --- out ---------------------------------------------------------------------------------------------------


def training_step(codec: Codec, seed: int = 0, noise: bool = True) -> Callable:
    """A compiled codec's `train_step` as a function of a uint8 batch, for `tf.function`.

    It returns the metrics of this batch alone: Keras' running means start anew in it.

    Args:
      codec: compiled, its variables made.
      seed: of the noise.
      noise: False for none, in tests.
    """

    def step(images: tf.Tensor) -> tuple[tf.Tensor, ...]:
        for metric in codec.metrics:
            metric.reset_state()
        with seeded_noise(tf.identity(codec.optimizer.iterations), seed, 1.0 if noise else 0.0):
            result = codec.train_step(tf.cast(images, tf.float32))
        return tuple(result[name] for name in _metric_names(codec))

    return step


def _metric_names(codec: Codec) -> list[str]:
    """The loss is first: it is what must stay finite."""
    return sorted((metric.name for metric in codec.metrics), key=lambda name: name != "loss")


def export(
    codec: Codec,
    batch_shape: tuple[int, int, int, int],
    directory: str | os.PathLike,
    *,
    seed: int = 0,
    noise: bool = True,
    options: dict | None = None,
) -> None:
    """Writes the training step of a codec and the state it starts from; see `train/pjrt/run.py`.

    Args:
      codec: compiled with optimizers whose learning rate is a number, not a schedule: the runner sets it. Its
        weights are those the training starts from; of tensors above `FULL_PRECISION_BYTES`, in float16.
      batch_shape: (B, P, P, 3); the step takes uint8, so that little goes to the device.
      directory: gets step.hlo, step.json and start/.
      seed: of the training noise.
      noise: False for none, in tests.
      options: further facts about the training, for the weights file.

    Raises:
      UserError: the directory cannot be written to.
      ValueError: the step has state or random numbers that could not travel.
    """
    _make_variables(codec)
    step = tf.function(training_step(codec, seed, noise), autograph=False, jit_compile=True)
    batch = tf.zeros(batch_shape, tf.uint8)
    concrete = step.get_concrete_function(batch)
    module = _portable_hlo(step.experimental_get_compiler_ir(batch)(stage="hlo_serialized"))
    inputs, files = _inputs(codec, concrete.captured_inputs)
    _check_inputs(module, batch_shape, inputs)
    names = {entry["name"] for entry in inputs}
    description = {
        "format": pjrt_run.FORMAT,
        "model": codec.entry.name,
        "config": weights.config_to_json(codec.config),
        "settings": codec.settings(),
        "batch": list(batch_shape),
        "metrics": _metric_names(codec),
        "learning_rate": float(codec.optimizer.learning_rate),
        "learning_rates": sorted(n for n in names if n.endswith("/learning_rate")),
        "averages": {w: a for a, w in _averages(codec).items() if a in names},
        "alias": {entry.output_shape_index[0]: entry.parameter_number for entry in module.input_output_alias.entries},
        "inputs": inputs,
        "options": options or {},
    }
    try:
        os.makedirs(os.path.join(directory, "start"), exist_ok=True)
        for name, arrays in files.items():
            np.savez_compressed(os.path.join(directory, "start", f"{name}.npz"), **arrays)
        Path(directory, "step.hlo").write_bytes(module.SerializeToString())
        Path(directory, "step.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{directory}: cannot be written to: {error.strerror}") from error


def _make_variables(codec: Codec) -> None:
    codec.build_variables(training=True)
    for optimizer in _optimizers(codec).values():
        if not getattr(optimizer, "_built", False):
            optimizer.build(codec.trainable_variables)


def _portable_hlo(serialized: bytes):
    """An HloModuleProto without what is of this machine alone.

    Raises:
      ValueError: it draws random numbers that are not a function of the step.
    """
    from tensorflow.compiler.xla.service import hlo_pb2

    module = hlo_pb2.HloModuleProto.FromString(serialized)
    for computation in module.computations:
        for instruction in computation.instructions:
            if instruction.opcode in ("rng", "rng-get-and-update-state"):
                raise ValueError(
                    f"{instruction.metadata.op_name}: draws random numbers other than by tf.random.uniform "
                    "or normal: they would begin anew in each process"
                )
            # Names and source files of operations: most of the file, and paths of this machine.
            instruction.ClearField("metadata")
    return module


def _optimizers(codec: Codec) -> dict[str, tf.keras.optimizers.Optimizer]:
    """The codec's optimizers by name."""
    children = tf.train.TrackableView.children(codec)
    return {n.lstrip("_"): c for n, c in children.items() if isinstance(c, tf.keras.optimizers.Optimizer)}


def _slots(codec: Codec) -> Iterator[tuple[str, str, tf.Variable, tf.Variable]]:
    """(name, kind of slot, weight, variable) of all that the optimizers keep for a weight."""
    names = {id(variable): name for name, variable in codec.named_variables().items()}
    weights_of = {_handle(v): v for v in codec.named_variables().values() if v.trainable}  # of all players
    for label, optimizer in _optimizers(codec).items():
        # Keras builds an optimizer on a list of weights; each kind of slot is a list in the same order.
        order = sorted(optimizer._index_dict.items(), key=lambda item: item[1])
        built_on = {optimizer._var_key(v): v for v in weights_of.values()}
        built_on = [built_on[key] for key, _ in order]
        for kind, slots in vars(optimizer).items():
            if isinstance(slots, list) and len(slots) == len(built_on) and kind != "_variables":
                for weight, slot in zip(built_on, slots):
                    if isinstance(slot, tf.Variable):
                        yield f"{label}/{kind.lstrip('_')}/{names[id(weight)]}", kind, weight, slot


def _averages(codec: Codec) -> dict[str, str]:
    """The name of each moving average and that of its weight."""
    names = {id(variable): name for name, variable in codec.named_variables().items()}
    return {name: names[id(w)] for name, kind, w, _ in _slots(codec) if kind == "_model_variables_moving_average"}


def _handle(variable: tf.Variable) -> int:
    return id(variable.handle)


def _named_state(codec: Codec) -> dict[int, tuple[str, str, tf.Variable]]:
    """(name, kind, variable) by handle of everything that a training step may read or write."""
    state = {_handle(v): (name, "weight", v) for name, v in codec.named_variables().items()}
    for name, _, _, variable in _slots(codec):
        state[_handle(variable)] = (name, "optimizer", variable)
    for label, optimizer in _optimizers(codec).items():
        for name in ("iterations", "learning_rate"):
            variable = getattr(optimizer, name)
            state[_handle(variable)] = (f"{label}/{name}", "optimizer", variable)
    for metric in codec.metrics:
        for k, variable in enumerate(metric.variables):
            # Each step begins with their reset: they are no state.
            state[_handle(variable)] = (f"metrics/{metric.name}/{k}", "metric", variable)
    return state


def _inputs(codec: Codec, captured: list) -> tuple[list[dict], dict[str, dict[str, np.ndarray]]]:
    """The entries of step.json for all that the step captures, and the arrays in start/ by file.

    What is all zeros (most of an optimizer, at first) is not stored, and a moving average that is still its
    weight is stored as that weight.
    """
    state = _named_state(codec)
    averages = _averages(codec)
    entries, files, values = [], {"weights": {}, "optimizer": {}, "constants": {}}, {}

    def add(number: int | None, name: str, kind: str, value: np.ndarray) -> None:
        values[name] = value
        start = None
        if value.any():
            weight = averages.get(name)
            if weight is not None and np.array_equal(values[weight], value):
                start = ["weights", weight]
            else:
                file = {"weight": "weights", "constant": "constants"}.get(kind, "optimizer")
                start = [file, name]
                files[file][name] = _compact(value) if kind != "constant" else value
        entry = {"input": number, "name": name, "kind": kind, "shape": list(value.shape)}
        entries.append({**entry, "dtype": value.dtype.name, "start": start})

    numbered = {}
    for number, tensor in enumerate(captured, start=1):  # input 0 is the batch
        if tensor.dtype != tf.resource:
            add(number, f"constants/{number}", "constant", tensor.numpy())
        elif id(tensor) in state:
            numbered[id(tensor)] = number
        else:
            raise ValueError(
                f"the training step uses a variable that is neither the codec's nor its optimizer's: {tensor}"
            )
    # Weights come first: averages refer to them. Those that the step does not touch come back unchanged.
    order = {"weight": 0, "optimizer": 1, "metric": 2}
    for handle, (name, kind, variable) in sorted(state.items(), key=lambda item: order[item[1][1]]):
        if handle in numbered or kind == "weight":
            add(numbered.get(handle), name, kind, variable.numpy())
    return entries, files


def _compact(value: np.ndarray) -> np.ndarray:
    small = value.dtype != np.float32 or value.nbytes <= FULL_PRECISION_BYTES
    return value if small else pjrt_run.to_float16(value)


def _check_inputs(module, batch_shape: tuple[int, ...], inputs: list[dict]) -> None:
    """Makes sure that XLA numbers the inputs as we do."""
    expected = {0: list(batch_shape), **{e["input"]: e["shape"] for e in inputs if e["input"] is not None}}
    found = [list(parameter.dimensions) for parameter in module.host_program_shape.parameters]
    if [expected[k] for k in sorted(expected)] != found:
        raise ValueError("the compiled step does not take what it captures, in this order")


# --- back --------------------------------------------------------------------------------------------------


def read_state(directory: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads what `train/pjrt/run.py` wrote: state.json, and the trained weights (float16) by name.

    Args:
      directory: that of the run or of a state; of the latter, state.json and weights-*.npz are enough.

    Raises:
      UserError: there is no state, or not all of it.
    """
    folder = str(directory)
    if not os.path.exists(os.path.join(folder, "state.json")):
        folder = pjrt_run.Checkpoints(folder).newest()
        if folder is None:
            raise UserError(f"{directory}: holds no state of a run of train/pjrt/run.py")
    try:
        state = pjrt_run.read_json(os.path.join(folder, "state.json"))
        paths = sorted(glob.glob(os.path.join(glob.escape(folder), "weights-[0-9]*.npz")))
        if state.get("format") != pjrt_run.FORMAT:
            raise UserError(f"{folder}: format {state.get('format')!r}, but this reads {pjrt_run.FORMAT!r}")
        if len(paths) != state["parts"]:
            raise UserError(f"{folder}: has {len(paths)} of {state['parts']} files weights-*.npz")
        values = {}
        for path in paths:
            values |= pjrt_run.read_npz(path)
    except pjrt_run.Failure as error:
        raise UserError(str(error)) from error
    return state, values


def import_state(directory: str | os.PathLike, codec: Codec) -> dict:
    """Gives a codec the weights (their moving average, if there is one) that a run has left.

    `codec.calibrate(images)` and `codec.save(path)` then make a weights file of them.

    Returns:
      The run's state.json.

    Raises:
      UserError: there is no state, or it is of another model or configuration.
    """
    state, values = read_state(directory)
    wanted = {"model": codec.entry.name, "config": weights.config_to_json(codec.config)}
    for what, value in wanted.items():
        if state.get(what) != value:
            raise UserError(f"{directory}: a state of {what} {state.get(what)}, not {value}")
    codec.build_variables(training=True)
    storage.assign(codec, values, source=str(directory))
    return state


def codec_of(directory: str | os.PathLike, entry: registry.Entry) -> tuple[Codec, dict]:
    """The codec of a state that a run has left, as its state.json describes it; and state.json.

    Raises:
      UserError: there is no state, or it is one of another model.
    """
    state, _ = read_state(directory)
    if state.get("model") != entry.name:
        raise UserError(f"{directory}: a state of {state.get('model')}, not of {entry.name}")
    config = weights.config_from_json(entry.config, state["config"])
    codec = entry.codec.from_settings(config, state["settings"])
    return codec, import_state(directory, codec)


# --- the command line's `train --runtime pjrt` -------------------------------------------------------------


@user_errors()
def train(entry: registry.Entry, build: Callable[[], Codec], options: FitOptions, args) -> str | None:
    """Does what the flags of `train/pjrt/options.py` ask for.

    Args:
      entry: the model.
      build: makes the codec to train, as of `train.fit.fit`.
      options: as of `pjrt_options.pjrt_fit_options`.
      args: parsed flags.

    Returns:
      The weights file; None after an export.

    Raises:
      UserError: something the user can put right; or the run ended with an error, which it has printed.
      SystemExit: SIGTERM or SIGINT stopped the run, with its state saved; --resume continues it.
    """
    with contextlib.suppress(RuntimeError):  # too late if TensorFlow has begun
        # The accelerator is for the run.
        tf.config.set_visible_devices([], "GPU")
    pjrt_options.warn_of_idle(options, args)
    if args.import_state:
        # The images that the run trained on are not known here, unless the user names those that it did not train on.
        kind = "validation" if options.validation_glob else "training"
        return _import(args.import_state, entry, options, open_data(options), kind)
    if args.export_only:
        _export(args.export_only, build, options)
        _add_runner(args.export_only)
        print(
            f"exported to {args.export_only}, with pjrt_run.py, which needs nothing else of this checkout: "
            f"python {RUNNER} . --images 'GLOB' --minutes N in that folder, on any machine"
        )
        return None
    directory = os.path.join(options.train_path, "pjrt")
    source, held_out = open_data(options)
    if options.resume and os.path.exists(os.path.join(directory, "step.json")):
        _check_same(directory, options, build())
        resume = pjrt_run.Checkpoints(directory).newest() is not None
    else:
        if pjrt_run.Checkpoints(directory).newest():
            raise UserError(
                f"{options.train_path}: holds a training run: --resume continues it, another --train_path "
                "begins a new one"
            )
        _export(directory, build, options)
        resume = False
    # The runner trains on the images that are large enough and not held out.
    images = os.path.join(directory, "images.txt")
    Path(images).write_text("\n".join(p.path for p in source.photographs), encoding="utf-8")
    _run(directory, images, options, args, resume)
    kind = "validation" if options.validation_glob else "held-out"
    return _import(directory, entry, options, (source, held_out), kind)


def _facts(options: FitOptions) -> dict:
    return {name: getattr(options, name) for name in pjrt_options.EXPORT_OPTIONS}


def _export(directory: str, build: Callable[[], Codec], options: FitOptions) -> None:
    if options.seed is not None:
        tf.keras.utils.set_random_seed(options.seed)
    with precision(options.mixed_precision):
        codec = build()
    # The same optimizer as under TensorFlow, but for the learning rate, which the runner sets, and Adam's one kernel.
    optimizer = make_optimizer(options)
    kind = tf.keras.optimizers.Adam if isinstance(optimizer, FusedAdam) else type(optimizer)
    codec.compile(optimizer=kind.from_config(optimizer.get_config() | {"learning_rate": options.learning_rate}))
    shape = (options.batchsize, options.patchsize, options.patchsize, 3)
    export(codec, shape, directory, seed=options.seed or 0, options=_facts(options))


def _add_runner(directory: str) -> None:
    """Puts the runner beside the exported step: where it goes there is no checkout of the zoo."""
    try:
        shutil.copyfile(pjrt_run.__file__, os.path.join(directory, RUNNER))
    except OSError as error:
        raise UserError(f"{directory}: cannot be written to: {error.strerror}") from error


def _check_same(directory: str, options: FitOptions, codec: Codec) -> None:
    """UserError if the exported step is not that of these settings and this codec."""
    try:
        meta = pjrt_run.Step(directory).meta
    except pjrt_run.Failure as error:
        raise UserError(str(error)) from error
    names = ("batchsize", "patchsize", "optimizer", "clipnorm", "ema", "mixed_precision")
    facts = {"optimizer": "adam"} | meta["options"]  # which was the only one once
    before = {f"--{name}": facts.get(name) for name in names} | meta["settings"]
    now = {f"--{name}": getattr(options, name) for name in names} | codec.settings()
    before["configuration"], now["configuration"] = meta["config"], weights.config_to_json(codec.config)
    for name, value in now.items():
        if before.get(name) != value:
            raise resume_mismatch(options.train_path, name, before.get(name), value)


def _run(directory: str, images: str, options: FitOptions, args, resume: bool) -> None:
    """Starts the runner, passes its output through and signals on to it, and waits."""
    command = [shutil.which(args.pjrt_python) or args.pjrt_python, pjrt_run.__file__, directory]
    command += ["--images", f"@{images}", "--rate", str(options.learning_rate)]
    if options.minutes:
        command += ["--minutes", str(options.minutes)]
    else:
        command += ["--steps", str(options.total_steps)]
    if options.schedule == "cosine":
        command += ["--decay", "cosine", "--decay_from", "0", "--end_rate", "0"]
    else:
        command += ["--decay", "drop", "--decay_from", str(1 - options.drop_share)]
        command += ["--end_rate", str(options.learning_rate / 10)]
    if options.warmup_steps:
        command += ["--warmup", str(options.warmup_steps)]
    if options.seed is not None:
        command += ["--seed", str(options.seed)]
    if resume:
        command += ["--resume"]
    # The other interpreter must not see this one's modules.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        # In a session of its own a Ctrl-C comes to us alone, and to it once.
        process = subprocess.Popen(command, env=environment, start_new_session=True)
    except OSError as error:
        raise UserError(f"--pjrt_python {args.pjrt_python}: cannot be run: {error.strerror}") from error
    received = []

    def forward(number, frame) -> None:
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received and code in (128 + received[0], -received[0]):
        raise SystemExit(128 + received[0])
    if code:
        raise UserError(f"{args.pjrt_python} train/pjrt/run.py: ended with exit code {code}: see above")


def _import(directory: str, entry: registry.Entry, options: FitOptions, data: tuple[Source, Crops], kind: str) -> str:
    """A state as a weights file.

    Args:
      directory: of the state.
      entry: the model.
      options: all settings.
      data: images to calibrate with, and those to say how good it is on.
      kind: what the latter are: "held-out" or "validation", for which the file's header tells it, too, or "training".

    Returns:
      The file's path.
    """
    codec, state = codec_of(directory, entry)
    source, crops = data
    codec.calibrate(calibration_patches(source, options))
    quality = _validate(codec, crops)
    print(f"{kind} images: " + "  ".join(f"{name} {value:.4f}" for name, value in quality.items()))
    path = os.path.join(options.train_path, FINAL)
    facts = {"steps": state["step"], **state["options"]}
    if kind != "training":
        facts |= {f"validation_{name}": value for name, value in quality.items()}
    try:
        os.makedirs(options.train_path, exist_ok=True)
    except OSError as error:
        raise UserError(f"{options.train_path}: cannot be written to: {error.strerror}") from error
    codec.save(path, metadata={name: str(value) for name, value in facts.items()})
    return path


def _validate(codec: Codec, crops: np.ndarray, batch: int = 8) -> dict[str, float]:
    """Means of the codec's metrics, as of `test_step`, over crops uint8 [N, P, P, 3]."""
    for metric in codec.metrics:
        metric.reset_state()
    for first in range(0, len(crops), batch):
        codec.test_step(tf.cast(crops[first : first + batch], tf.float32))
    return {metric.name: float(metric.result()) for metric in codec.metrics}
