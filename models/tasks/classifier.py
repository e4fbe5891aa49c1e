"""Classifiers of images that are cut in two: a codec can enter behind the cut, with features made of its latents.

    images ──► front ──► features at 1/8 ──► tail ──► logits
                             ▲
    y_hat ──► feature transform of a codec (models/elc.py)

Three architectures: "resnet50" of keras.applications, cut behind `conv3_block4_out` (what PyTorch calls layer2);
"efficientnet_lite0" and its like of `transforms/networks/efficientnet_lite.py`; and a small residual network that a CPU
can train, named by its widths. `train/classifier.py` trains them and writes the files that are read here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Union

import numpy as np
import tensorflow as tf

from models.codec import precision, weights
from models.codec.variables import variables_by_path
from models.io.errors import UserError, one_line
from transforms.chain import Chain
from transforms.networks import efficientnet_lite as lite
from transforms.resample import Subsample

Layer = tf.keras.layers.Layer
Conv2D = tf.keras.layers.Conv2D

#: Where ResNet50 is cut, and how many channels it has there.
RESNET50_CUT, RESNET50_FEATURES = "conv3_block4_out", 512
#: Channels of the small network at 1/2, 1/4, 1/8 (where it is cut), 1/16 and 1/32.
SMALL_WIDTHS = (32, 64, 96, 160, 256)

RESNET50 = "resnet50"
#: The architecture of a classifier: a name, or the widths of the small network.
Architecture = Union[str, tuple[int, ...]]


def cut_channels(architecture: Architecture) -> int:
    """Channels of the features at the cut."""
    if architecture == RESNET50:
        return RESNET50_FEATURES
    return lite.cut_channels(architecture) if isinstance(architecture, str) else architecture[2]


def class_key(name: str) -> str:
    """What two names of a class have in common: case does not matter, and spaces may stand for underscores."""
    return name.strip().replace(" ", "_").casefold()


def checked(architecture: Architecture) -> Architecture:
    """An architecture as it stands in a header, lists as tuples. UserError if there is none such."""
    if isinstance(architecture, str):
        if architecture != RESNET50 and architecture not in lite.VARIANTS:
            names = ", ".join((RESNET50, *lite.VARIANTS))
            raise UserError(f"classifier {architecture}: there are {names}, and a small network, named by its widths")
        return architecture
    if len(architecture) != len(SMALL_WIDTHS):
        raise UserError(f"a small classifier has {len(SMALL_WIDTHS)} widths, not {len(architecture)}")
    return tuple(architecture)


def described(architecture: Architecture) -> str:
    """An architecture in words, for messages."""
    if isinstance(architecture, str):
        return {RESNET50: "ResNet50"}.get(architecture, architecture)
    return f"a small network of widths {','.join(map(str, architecture))}"


class _NormalisedBlock(Layer):
    """ReLU([3x3 stride 2, norm, ReLU, 3x3, norm](x) + [1x1](every other x)): [B, H, W, C] -> [B, H / 2, W / 2, c].

    Group normalisation: unlike batch normalisation it works alike in training and inference.
    """

    def __init__(self, channels: int, name: str):
        super().__init__(name=name)
        norm = tf.keras.layers.GroupNormalization
        self.first = Conv2D(channels, 3, strides=2, padding="same", use_bias=False, name="first")
        self.first_norm = norm(groups=8, name="first_norm")
        self.second = Conv2D(channels, 3, padding="same", use_bias=False, name="second")
        self.second_norm = norm(groups=8, name="second_norm")
        self.skip = Subsample(channels, name="skip")

    def build(self, input_shape):
        inner = self.first.compute_output_shape(input_shape)
        for layer, shape in (
            (self.first, input_shape),
            (self.first_norm, inner),
            (self.second, inner),
            (self.second_norm, inner),
            (self.skip, input_shape),
        ):
            layer.build(shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return self.first.compute_output_shape(input_shape)

    def call(self, x):
        y = tf.nn.relu(self.first_norm(self.first(x)))
        return tf.nn.relu(self.second_norm(self.second(y)) + self.skip(x))


def _resnet50(weights: str | None = None) -> tf.keras.Model:
    """keras.applications' ResNet50 without its last layer; weights: as it takes them."""
    return tf.keras.applications.ResNet50(include_top=False, weights=weights, input_shape=(None, None, 3))


def _built(net: Chain) -> Chain:
    net.build()
    return net


class Front(Layer):
    """Images, float32 [B, H, W, 3] in 0..255 -> features [B, H / 8, W / 8, C]."""

    def __init__(self, architecture: Architecture, name: str = "front"):
        super().__init__(name=name)
        if architecture == RESNET50:
            net = _resnet50()
            self.net = tf.keras.Model(net.input, net.get_layer(RESNET50_CUT).output)
            self.preprocess = tf.keras.applications.resnet50.preprocess_input
        elif isinstance(architecture, str):
            self.net, self.preprocess = _built(lite.front(architecture)), lite.normalise
        else:
            n1, n2, n3 = architecture[:3]
            blocks = [
                Conv2D(n1, 3, strides=2, padding="same", activation="relu", name="stem"),
                _NormalisedBlock(n2, "block2"),
                _NormalisedBlock(n3, "block3"),
            ]
            self.net, self.preprocess = _built(Chain(3, lambda: blocks, name="net")), lambda images: images / 127.5 - 1

    def call(self, images, training=False):
        images = self.preprocess(tf.cast(images, tf.float32))
        # A Chain has nothing that training changes.
        return self.net(images) if isinstance(self.net, Chain) else self.net(images, training=training)


class Tail(Layer):
    """Features [B, H / 8, W / 8, C] -> logits, float32 [B, classes]."""

    def __init__(self, architecture: Architecture, classes: int, name: str = "tail"):
        super().__init__(name=name)
        if architecture == RESNET50:
            net = _resnet50()
            self.net = tf.keras.Model(net.get_layer(RESNET50_CUT).output, net.output)
            channels = net.output.shape[-1]
        elif isinstance(architecture, str):
            self.net, channels = _built(lite.tail(architecture)), lite.HEAD
        else:
            n3, n4, n5 = architecture[2:]
            blocks = [_NormalisedBlock(n4, "block4"), _NormalisedBlock(n5, "block5")]
            self.net, channels = _built(Chain(n3, lambda: blocks, name="net")), n5
        self.predictions = tf.keras.layers.Dense(classes, dtype="float32", name="predictions")
        self.predictions.build([None, channels])

    def call(self, features, training=False):
        x = self.net(features) if isinstance(self.net, Chain) else self.net(features, training=training)
        return self._logits(x)

    def activations(self, features) -> list[tf.Tensor]:
        """Returns the features, what each layer makes of them (of ResNet50 the last alone), and last the logits."""
        found = [features]
        for layer in self.net.layers if isinstance(self.net, Chain) else [self.net]:
            found.append(layer(found[-1]))
        return [*found, self._logits(found[-1])]

    def _logits(self, x):
        return self.predictions(tf.reduce_mean(tf.cast(x, tf.float32), [1, 2]))


class Classifier(tf.keras.Model):
    """Images, float32 [B, H, W, 3] in 0..255 -> logits, float32 [B, classes].

    Args:
      architecture: "resnet50"; "efficientnet_lite0" or another of `lite.VARIANTS`; or the widths of the small network,
        as `SMALL_WIDTHS`, multiples of 8 but for the first.
      labels: names of the classes, in the order of the logits.

    Raises:
      UserError: there is no such architecture.
    """

    def __init__(self, architecture: Architecture, labels: Sequence[str]):
        super().__init__(name="classifier")
        self.architecture, self.labels = checked(architecture), tuple(labels)
        self.front = Front(self.architecture)
        self.tail = Tail(self.architecture, len(self.labels))

    def call(self, images, training=False):
        return self.tail(self.front(images, training=training), training=training)

    def features_at_cut(self, images) -> tf.Tensor:
        """Images, float32 [B, H, W, 3] in 0..255 -> features [B, H / 8, W / 8, C]: the output of the front."""
        return self.front(images)

    def features(self, images) -> list[tf.Tensor]:
        """Returns activations for `transforms.losses.deep_features`: of a Lite network at all its scales, else the
        output of the front alone."""
        if self.architecture in lite.VARIANTS:
            return lite.pyramid(self.front.net, self.tail.net, tf.cast(images, tf.float32))
        return [self.front(images)]

    def named_variables(self) -> dict[str, tf.Variable]:
        """Returns all variables by path, such as `tail/predictions/kernel`."""
        return {
            f"{part}/{name}": variable
            for part, layer in (("front", self.front), ("tail", self.tail))
            for name, variable in variables_by_path(layer).items()
        }

    def save_file(self, path, metadata: dict[str, str] | None = None, force: bool = True) -> None:
        """Writes a file that `load` reads: float16 weights, float32 statistics."""
        tensors = {
            name: variable.numpy().astype(np.float16) if variable.trainable else variable.numpy()
            for name, variable in self.named_variables().items()
        }
        header = {
            "model": "classifier",
            "architecture": json.dumps(self.architecture),
            "labels": json.dumps(self.labels),
            "weights_id": weights.fingerprint(tensors).hex(),
        }
        weights.write(path, tensors, {**(metadata or {}), **header}, force=force)

    def begin_as(self, other: Classifier) -> None:
        """Takes the weights of another one, but for its last layer if that is of other classes.

        Raises:
          UserError: it is of another architecture.
        """
        if other.architecture != self.architecture:
            raise UserError(f"the classifier is {described(other.architecture)}, not {described(self.architecture)}")
        theirs = other.named_variables()
        for name, variable in self.named_variables().items():
            if other.labels == self.labels or not name.startswith("tail/predictions/"):
                variable.assign(theirs[name])

    def load_keras(self, source: str) -> None:
        """Takes ResNet50's weights: "imagenet", which Keras downloads, or a file of Keras' without its last layer.

        The last layer is taken from ImageNet's only if the classes are as many, 1000.

        Raises:
          UserError: not a ResNet50; no such file, or the download failed.
        """
        if self.architecture != RESNET50:
            raise UserError(f"{source}: Keras has weights for ResNet50, not for {described(self.architecture)}")
        try:
            net = _resnet50(source)
            for part in (self.front, self.tail):
                for layer in part.net.layers:
                    if layer.weights:
                        layer.set_weights(net.get_layer(layer.name).get_weights())
            if source == "imagenet" and len(self.labels) == 1000:
                whole = tf.keras.applications.ResNet50(weights=source)
                self.tail.predictions.set_weights(whole.get_layer("predictions").get_weights())
        except Exception as error:  # of h5py, of the download, of shapes: an exception type for each
            raise UserError(f"{source}: no weights of ResNet50: {one_line(error)[:200]}") from error


def load(name) -> Classifier:
    """Loads a classifier: a file of `Classifier.save_file`, or one that ships by its name. UserError if it fails.

    It computes in float32 under any precision policy: what it says is a measure.
    """
    path = weights.of_classifier(name) or name
    tensors, metadata = weights.read(path)
    if metadata.get("model") != "classifier":
        raise UserError(f"{path}: weights of {metadata.get('model')}, not of a classifier")
    weights.verify(path, tensors, metadata)
    try:
        # Earlier versions wrote the widths of the small network, none for ResNet50.
        architecture = metadata["architecture"] if "architecture" in metadata else metadata["widths"]
        with precision.scope("float32"):
            classifier = Classifier(json.loads(architecture) or RESNET50, json.loads(metadata["labels"]))
        for name, variable in classifier.named_variables().items():
            variable.assign(tensors[name].astype(variable.dtype.as_numpy_dtype))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged classifier: {one_line(error)}") from error
    return classifier
