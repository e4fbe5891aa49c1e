"""A codec as small as one can be, for tests of what trains codecs."""

import dataclasses

import tensorflow as tf

from models.codec import Codec, register
from models.entropy.tables import NUM_SCALES


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Latent channels."""

    channels: int = 4


@register("toy", config=ToyConfig, presets={"base": ToyConfig()}, model_id=255)
class Toy(Codec):
    """Two layers and a factorised prior: compiles in seconds, and has noise, densities and convolutions."""

    stride = (4, 4)

    def __init__(self, config=ToyConfig(), **kwargs):  # noqa: B008
        super().__init__(config, **kwargs)
        self.analysis = tf.keras.layers.Conv2D(config.channels, 4, strides=4, name="analysis")
        self.synthesis = tf.keras.layers.Conv2DTranspose(3, 4, strides=4, name="synthesis", dtype="float32")

    def prior_channels(self):
        return self.config.channels

    def analyse(self, images):
        return 8 * tf.cast(self.analysis(self.normalise(images)), tf.float32)

    def code(self, coder, y, shape):
        y_shape = [shape[0], shape[1] // 4, shape[2] // 4, self.config.channels]
        return coder.factorized("y", y, NUM_SCALES, y_shape)

    def reconstruct(self, latents):
        return self.denormalise(self.synthesis(latents / 8))
