"""Quality maps for a task: where a classifier needs the bits to keep its answer.

Song, Choi, Han, ICCV 2021 (see models/sft.py), section 4.4. The map is found by gradient descent through the frozen
codec and the frozen classifier, for the least

    bpp + weight · cross-entropy(classifier(decoded image), the answer to the image itself)

The rate is that of a training step: bits of the float entropy model under additive uniform noise, which has a gradient
where real files have none; decoded latents are rounded, with the gradient passing straight through.

Unlike the paper's the map has one value for each 16x16 pixels, as many as a latent has positions, smoothed; it starts
flat, and Adam takes the place of L-BFGS.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from models.codec import weights
from models.io.errors import UserError, one_line
from models.tasks import classifier as classifiers

CELL = 16
START = -2.0  # of the map before its sigmoid: a quality of 0.12


class Classifier:
    """A Keras classifier, whatever it takes and gives, as probabilities of 0..255 images.

    Args:
      model: takes float32 RGB images [B, H, W, 3] (0..255 where there is no `preprocess`), gives logits or
        probabilities [B, classes].
      preprocess: what comes before it, differentiable.
      resize: whether images are brought to the size it takes; otherwise they have to have it.
    """

    def __init__(self, model: tf.keras.Model, preprocess: Callable | None = None, resize: bool = False):
        self.model = model
        self.preprocess = preprocess or (lambda images: images)
        self.size = None
        shape = getattr(model, "input_shape", None)
        if shape is not None:
            if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] != 3:
                raise UserError(f"the classifier takes {shape}, not images [B, H, W, 3]")
            self.size = shape[1:3] if None not in shape[1:3] else None
        self.resize = resize

    def check(self, height: int, width: int) -> None:
        """UserError if it does not take images of this size."""
        if self.size and not self.resize and (height, width) != tuple(self.size):
            raise UserError(
                f"the classifier takes images of {self.size[1]}x{self.size[0]}, and this one is {width}x{height}"
            )

    def log_probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """float32 [B, H, W, 3] in 0..255 -> float32 [B, classes]."""
        if self.size and self.resize:
            images = tf.image.resize(images, self.size, antialias=True)
        outputs = tf.cast(self.model(self.preprocess(images), training=False), tf.float32)
        # The logarithm of a softmax of logarithms of probabilities is those logarithms.
        sums = tf.reduce_sum(outputs, -1, keepdims=True)
        are_probabilities = tf.reduce_all(outputs >= 0) & tf.reduce_all(tf.abs(sums - 1) < 1e-3)
        logits = tf.where(are_probabilities, tf.math.log(tf.maximum(outputs, 1e-9)), outputs)
        return tf.nn.log_softmax(logits)


def load_classifier(name: str) -> Classifier:
    """A classifier by name.

    One that ships, such as efficientnet_lite0, or a file of `train/classifier.py`; a SavedModel folder, a .keras or .h5
    file; or the name of a class of keras.applications. Images are resized to what the last kind takes, as is usual for
    those; otherwise they have to fit.

    Raises:
      UserError: it is none of these, or takes no images.
    """
    if weights.of_classifier(name):
        return Classifier(classifiers.load(name))
    try:
        if os.path.exists(name):
            return Classifier(tf.keras.models.load_model(name, compile=False))
        network = getattr(tf.keras.applications, name, None)
        if not isinstance(network, Callable):
            raise UserError(
                f"{name}: neither a classifier that ships, nor a Keras model's file or folder, nor a network of "
                "keras.applications"
            )
        module = next(
            m for m in vars(tf.keras.applications).values() if hasattr(m, "preprocess_input") and hasattr(m, name)
        )
        return Classifier(network(weights="imagenet"), module.preprocess_input, resize=True)
    except UserError:
        raise
    except Exception as error:  # Keras raises what the format's library happens to raise
        reason = one_line(error)[:200]
        raise UserError(f"{name}: not a Keras classifier that can be loaded ({reason})") from error


def find_maps(
    codec, classifier: Classifier, images: np.ndarray, weight: float = 1.0, steps: int = 12, rate: float = 0.5
) -> np.ndarray:
    """Maps for images of one size: uint8 [B, H, W, 3] -> float32 [B, H, W, 1] in 0..1, of each image the best seen.

    Args:
      codec: an SFT in its training form, of `load_for_training`.
      classifier: whose answers are to be kept.
      images: the images.
      weight: bpp that a nat of cross-entropy is worth: higher keeps answers more surely, for more bits.
      steps: of Adam.
      rate: its learning rate, for the map before its sigmoid.

    Raises:
      UserError: the classifier takes images of another size, or the weight is negative.
    """
    if not weight >= 0:
        raise UserError(f"the weight of a task must not be negative, and is {weight:g}")
    batch, height, width = images.shape[:3]
    classifier.check(height, width)
    floats = tf.cast(images, tf.float32)
    answers = tf.argmax(classifier.log_probabilities(floats), -1)
    cells = tf.Variable(tf.fill([batch, -(-height // CELL), -(-width // CELL), 1], START))
    optimizer = tf.keras.optimizers.Adam(rate)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(cells)
            maps = tf.sigmoid(tf.image.resize(cells, [height, width]))
            decoded, bits = codec(floats, training=True, quality_map=maps)
            log_probabilities = classifier.log_probabilities(tf.clip_by_value(decoded, 0.0, 255.0))
            entropy = -tf.gather(log_probabilities, answers, batch_dims=1)
            losses = tf.add_n(list(bits.values())) / (height * width) + weight * entropy
        return losses, maps, tape.gradient(losses, cells)

    best, result = np.full(batch, np.inf), np.zeros([batch, height, width, 1], np.float32)
    for _ in range(steps):
        losses, maps, gradient = step()
        better = losses.numpy() < best
        best[better], result[better] = losses.numpy()[better], maps.numpy()[better]
        optimizer.apply_gradients([(gradient, cells)])
    return result
