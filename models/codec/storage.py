"""Weights files: what `Codec.calibrate`, `Codec.save` and `load` do.

A weights file holds the trained weights in float16, the integer form of the entropy networks and the probability tables
(`bank/...`). Its header says which model and configuration it is of; the 4 bytes of `weights_id` name its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from models.codec import coding, registry, weights
from models.codec.lambdas import check_lambdas
from models.codec.options import DEFAULTS
from models.codec.precision import AUTO, FLOAT32, coding_policy, resolve, scope
from models.codec.variables import through_float16, without_initialisers
from models.entropy import tables
from models.entropy.coders import SymbolCount, TableRate
from models.io.errors import UserError, one_line
from transforms import exact

if TYPE_CHECKING:
    from models.codec.base import Codec

CALIBRATION_BATCH = 32
#: What the header of a weights file says, under "form", where it is `save_for_coding` that wrote it.
CODING_ONLY = "coding only"


def load(path, preset: str | None = None, *, synthesis: bool = True, precision: str = AUTO) -> Codec:
    """Loads a codec, ready to compress and decompress. Imports no TFC.

        load("elic")  load("elic", "small")  load("runs/elic/best.safetensors")

    Args:
      path: the name of a model, for weights that ship; or of a .safetensors file.
      preset: with the name of a model, which of its weights; by default those of its card.
      synthesis: False loads only what compressing needs.
      precision: of the transforms, see `models/codec/precision.py`: "auto", "float32" or "bfloat16".

    Raises:
      UserError: no such file, not ours, damaged; no weights of that preset ship; no such precision.
    """
    if path in registry.CARDS:
        path = weights.default(path, preset)
    elif preset is not None:
        raise UserError(f"{path}: no model is called so; a preset goes with the name of a model")
    card = registry.CARDS.get(weights.read_metadata(path).get("model"))
    if precision == AUTO and card is not None and not card.bfloat16:
        precision = FLOAT32
    computed_in = resolve(precision)
    with without_initialisers(), scope(coding_policy(computed_in)):
        codec, values, weights_id = _from_file(path, synthesis=synthesis)
    assign(codec, values, source=str(path))
    codec.weights_id, codec.path, codec.precision = weights_id, str(path), computed_in
    return codec


def load_for_training(path, lmbda: float | Sequence[float] | None = None) -> Codec:
    """Loads the codec of a weights file to go on training: without tables and integers, which belong to these weights.

    lmbda: λ to train with; that of the file by default. Several where the file has one: see `Codec.to_variable_rate`.

    Raises UserError as `load` does, or if the file has several λ and not as many.
    """
    if weights.read_metadata(path).get("form") == CODING_ONLY:
        raise UserError(
            f"{path}: for coding only: it lacks the float form of the entropy networks, which training needs"
        )
    codec, values, _ = _from_file(path, training=True)
    assign(codec, {name: value for name, value in values.items() if not name.startswith("bank/")}, source=str(path))
    if lmbda is None:
        return codec
    lambdas = check_lambdas(lmbda)
    if len(codec.lambdas) == 1 < len(lambdas):
        return codec.to_variable_rate(lambdas)
    if len(lambdas) != len(codec.lambdas):
        raise UserError(f"{path}: has {len(codec.lambdas)} λ, and cannot go on with {len(lambdas)}")
    codec.lambdas = lambdas
    return codec


def load_checkpoint(model: str, path, lmbda: float | Sequence[float] | None = None) -> Codec:
    """`load_for_training` of weights of a model. UserError if they are of another."""
    weights.check_model(path, model)
    return load_for_training(path, lmbda)


def training_form(codec: Codec) -> Codec:
    """A codec with the variables of training, from its file; one that was trained just now is that itself."""
    return codec if codec.path is None else load_for_training(codec.path)


def _from_file(path, **variables) -> tuple[Codec, dict[str, np.ndarray], bytes]:
    """A codec with the `variables` of `build_variables`, the tensors of its weights file, and their fingerprint."""
    values, metadata = weights.read(path)
    weights_id = weights.verify(path, values, metadata)
    try:
        entry = registry.get(metadata.get("model", ""))
        config = weights.config_from_json(entry.config, metadata.get("config", ""))
        codec = entry.codec.from_settings(config, metadata)
        codec.build_variables(**variables)
        return codec, values, weights_id
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"{path}: damaged weights file: {one_line(error)}") from error


def calibrate(codec: Codec, images: np.ndarray) -> None:
    """Derives tables and integers from the trained weights, see `Codec.calibrate`."""
    for variable in codec.named_variables().values():
        if variable.trainable:
            variable.assign(through_float16(variable.numpy()))
    codec.set_bank(tables.CdfBank.from_pmfs(codec.table_rows()))

    def show_all(make_coder, analyse):
        for batch, chosen in calibration_batches(codec, images):
            codec.code(make_coder(), analyse(batch, chosen), tf.shape(batch)[:3], **chosen)

    with exact.calibrating(codec.submodules):
        # A coder for each: it adds up bits by the image, and batches differ in size.
        show_all(lambda: TableRate(codec.bank), lambda *inputs: coding.refine_analysis(codec, *inputs))
    # Rounded latents are not quite the Gaussians of their noisy selves.
    counter = SymbolCount(codec.bank)

    # A graph takes a half of the time that RDOQ takes without.
    @tf.function(autograph=False, reduce_retracing=True)
    def analyse(batch, chosen):
        return coding.analyse_for_encoding(codec, batch, chosen, DEFAULTS)

    show_all(lambda: counter, analyse)
    codec.set_bank(codec.bank.fitted(counter.counts))
    codec.weights_id = weights.fingerprint(tensors(codec))


def calibration_batches(codec: Codec, images: np.ndarray) -> Iterator[tuple[tf.Tensor, dict[str, tf.Tensor]]]:
    """Images [N, H, W, 3] in padded batches, float32, with controls from the lowest to the highest quality."""
    controls = codec.rate_control.for_calibration(np.shape(images)[:3])
    order = np.random.default_rng(0).permutation(len(images))  # each batch sees images of all kinds and qualities
    for batch in np.array_split(order, -(-len(images) // CALIBRATION_BATCH)):
        padded = codec.pad(tf.cast(np.asarray(images)[batch], tf.float32))
        yield padded, codec.pad_controls({name: tf.constant(value[batch]) for name, value in controls.items()})


def save_for_coding(source, target) -> None:
    """Writes a weights file without what only training needs, the float form of the entropy networks.

    Its weights are another set, with an id of its own: an id covers all tensors of a file.
    """
    values = tensors(load(source))
    weights_id = weights.fingerprint(values).hex()
    weights.write(target, values, {**weights.read_metadata(source), "weights_id": weights_id, "form": CODING_ONLY})


def tensors(codec: Codec) -> dict[str, np.ndarray]:
    """Collects all tensors of a weights file, by name: float16 weights, integer networks, tables (`bank/...`)."""
    result = {}
    for name, variable in codec.named_variables().items():
        if name.startswith("discriminator"):
            continue  # part of a training, not of the codec: another training makes its own
        value = variable.numpy()
        # Multipliers and steps of the integer form are exact float32 numbers; trained weights are float16.
        result[name] = value.astype(np.float16) if variable.trainable else value
    if codec.bank is not None:
        result |= {f"bank/{name}": value for name, value in codec.bank.tensors().items()}
    return result


def save(codec: Codec, path, metadata: dict[str, str] | None = None) -> None:
    """Writes a weights file, see `Codec.save`."""
    if codec.bank is None:
        raise ValueError("calibrate() the codec before saving it: coding needs its tables")
    values = tensors(codec)
    if weights.fingerprint(values) != codec.weights_id:
        raise ValueError(
            "calibrate() the codec again before saving it: it has learnt since, or was loaded to code, without the "
            "weights that only training needs (weights.annotate changes the header of a file)"
        )
    header = {
        "model": codec.entry.name,
        "config": weights.config_to_json(codec.config),
        **codec.settings(),
        "weights_id": codec.weights_id.hex(),
    }
    weights.write(path, values, {**(metadata or {}), **header})


def assign(codec: Codec, values: dict[str, np.ndarray], source: str) -> None:
    """Gives the variables that exist, and the tables, their values by name. UserError if they do not fit."""
    bank = {name[5:]: value for name, value in values.items() if name.startswith("bank/")}
    for name, variable in codec.named_variables().items():
        value = values.get(name)
        if value is None or value.shape != tuple(variable.shape):
            raise UserError(f"{source}: not of this model and configuration (at {name})")
        variable.assign(value.astype(variable.dtype.as_numpy_dtype))
    if bank:
        codec.set_bank(tables.CdfBank.from_tensors(bank))
