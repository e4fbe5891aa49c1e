"""Makes the golden files of a model's stream format: `python tests/golden/make.py elic`, a few minutes.

    elic_tiny.safetensors.gz  a very small ELIC, trained on crops of the sample photograph for a little while
    elic_tiny.tfci            a crop of the photograph, compressed with it
    elic_tiny.png             what that decodes to
    elic_tiny.json            a fingerprint of the symbols in it

and so for the others.

They are a promise: what was written once can be read for ever. Make them anew only together with a new version of the
format. The tests also use the weights as their tiny model.

With --keep_weights only the stream and what it decodes to are made anew.
"""

import argparse
import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from decode import SymbolHash

from models import cwic, elc, elic, sae_spn, sft
from models.codec import load
from models.io.images import encode_image, read_image
from models.tasks.classifier import Classifier
from train.elc_stages import following

HERE = Path(__file__).resolve().parent
PHOTOGRAPH = HERE.parent.parent / "res" / "eval" / "kodim23_512x384.png"
#: Classes of ELC's classifier.
LABELS = ("parrot", "leaf", "other")
#: Rows and columns of the photograph that the golden stream shows: an odd size, neither a multiple of a stride.
CROP = (slice(90, 90 + 75), slice(100, 100 + 93))


def crops(count: int) -> tf.data.Dataset:
    """Crops of the photograph, uint8 [64, 64, 3]: the same ones every time."""
    picture = tf.constant(read_image(PHOTOGRAPH))
    return tf.data.Dataset.range(count).map(lambda n: tf.image.stateless_random_crop(picture, [64, 64, 3], [n, n]))


def fit(codec, steps: int, rate: float) -> None:
    """Trains a codec whose variables are made, eight crops a step."""
    schedule = tf.keras.optimizers.schedules.CosineDecay(rate, steps)
    codec.compile(tf.keras.optimizers.Adam(schedule, global_clipnorm=1.0))
    codec.fit(crops(8 * steps).batch(8).prefetch(2), verbose=2)


def tiny_elic(steps: int) -> elic.ELIC:
    """A trained ELIC."""
    config = elic.Config(
        widths=(8, 8, 8),
        groups=(2, 2, 4),
        hyper_channels=4,
        hyper_widths=(8, 8),
        hyper_features=16,
        context_widths=(8, 8),
        parameter_width=16,
    )
    codec = elic.ELIC(config, lmbda=0.1)
    codec.build_variables(training=True)
    # Latents that stand out of the noise from the first step on: there is no time to wait for them.
    names = codec.named_variables()
    for name, factor in (("analysis/layers/13/kernel", 20), ("synthesis/layers/1/kernel", 1 / 20)):
        names[name].assign(factor * names[name])
    fit(codec, steps, 4e-3)
    return codec


def tiny_sft(steps: int) -> sft.SFT:
    """A trained SFT."""
    config = sft.Config(
        widths=(8, 8, 8, 16),
        latents=8,
        hyper_channels=4,
        hyper_widths=(8, 8),
        recovered=4,
        condition_features=6,
        condition_widths=(8,),
        pixel_condition_widths=(8,),
        sft_width=6,
    )
    codec = sft.SFT(config, lmbda=(0.002, 0.1))
    codec.build_variables(training=True)
    fit(codec, steps, 2e-3)
    return codec


def tiny_cwic(steps: int) -> cwic.CWIC:
    """A CWIC that was trained in both stages."""
    config = cwic.Config(
        encoder_widths=(16, 24),
        decoder_widths=(24, 32, 8),
        hidden=8,
        levels=8,
        code_groups=(4, 4, 8),
        context_width=8,
        map_context_width=8,
    )
    first = cwic.CWIC(config)
    first.build_variables(training=True)
    fit(first, steps, 1.5e-3)
    codec = cwic.CWIC.second_stage(first, ratio=0.4)
    fit(codec, steps, 1.5e-3)
    return codec


def tiny_sae_spn(steps: int) -> sae_spn.SAESPN:
    """A trained SAE-SPN of stage 1."""
    config = sae_spn.Config(
        widths=(4, 8, 12, 16, 24),
        latent_groups=(2, 2, 4),
        blocks=2,
        norm="channel",
        context_width=8,
        discriminator_widths=(4, 8, 8, 8),
    )
    codec = sae_spn.SAESPN(config, weights={"mse": 50.0})
    codec.build_variables(training=True)
    fit(codec, steps, 5e-3)
    return codec


def tiny_elc(steps: int) -> elc.ELC:
    """An ELC of stage "decoder", with all that files are read with; only its base is trained, 30 steps will do."""
    config = elc.Config(
        width=6,
        hyper_widths=(8, 8),
        hyper_features=12,
        parameter_widths=(16, 16),
        transform_width=6,
        classifier=(8, 8, 8, 8, 16),
        enhanced_width=4,
        growth=4,
        dense_blocks=1,
        discriminator_width=4,
    )
    base = elc.ELC(config, lmbda=0.1)
    base.build_variables(training=True)
    # As for ELIC: latents that stand out from the first step on. Not by much: inverse GDNs amplify what is loud.
    kernel = base.named_variables()["analysis/layers/7/kernel"]
    kernel.assign(16 * kernel)
    fit(base, steps, 1e-2)
    classification = following(base, "classification", Classifier(config.classifier, LABELS))
    codec = following(classification, "decoder")
    codec.enhancement.fuse.kernel.assign(tf.random.normal(codec.enhancement.fuse.kernel.shape, stddev=0.02))
    return codec


MODELS = {"elic": tiny_elic, "sft": tiny_sft, "cwic": tiny_cwic, "sae_spn": tiny_sae_spn, "elc": tiny_elc}


def main() -> None:
    """Makes the files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--keep_weights", action="store_true", help="Only make the stream and its picture.")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    name = f"{args.model}_tiny"
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{name}.safetensors"
        packed = HERE / f"{name}.safetensors.gz"
        if args.keep_weights:
            weights.write_bytes(gzip.decompress(packed.read_bytes()))
        else:
            tf.keras.utils.set_random_seed(1)
            codec = MODELS[args.model](args.steps)
            codec.calibrate(np.stack(list(crops(64).as_numpy_iterator())))
            codec.save(weights)
            packed.write_bytes(gzip.compress(weights.read_bytes(), mtime=0))
        codec = load(weights)
    data = codec.compress(read_image(PHOTOGRAPH)[CROP])
    (HERE / f"{name}.tfci").write_bytes(data)
    with SymbolHash() as symbols:
        decoded = codec.decompress(data)
    (HERE / f"{name}.png").write_bytes(encode_image(decoded))
    (HERE / f"{name}.json").write_text(json.dumps({"symbols": symbols.hex()}) + "\n")


if __name__ == "__main__":
    main()
