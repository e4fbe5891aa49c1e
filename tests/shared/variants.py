"""Weights files that differ from another in their configuration alone, and what one is good for beside another."""

import dataclasses

import tensorflow as tf

from models.codec import load, weights


def with_config(path, folder, **changes):
    """The codec of a weights file with some numbers of its configuration changed; its file goes into `folder`."""
    values, metadata = weights.read(path)
    config = dataclasses.replace(load(path).config, **changes)
    weights.write(folder / "weights.safetensors", values, {**metadata, "config": weights.config_to_json(config)})
    return load(folder / "weights.safetensors")


def gain(path, folder, image, quality, before, after):
    """By what share of the rate the loss of an image [H, W, 3] falls from one to other changes of a configuration."""

    def loss_and_rate(changes):
        codec = with_config(path, folder, **changes)
        _, controls = codec.rate_control.from_args([1, *image.shape[:2]], quality=quality)
        images = tf.cast(image[None], tf.float32)
        reconstruction, bits = codec(images, **controls)
        bpp = tf.add_n(list(bits.values())) / (image.shape[0] * image.shape[1])
        return float(codec.rate_distortion(images, reconstruction, bpp, **controls)[0]), float(bpp[0])

    (then, rate), (now, _) = loss_and_rate(before), loss_and_rate(after)
    return (then - now) / rate
