"""EfficientNet-Lite: classifiers of ImageNet's 1000 classes, and what their layers see in an image.

Tan and Le: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, without
squeeze-and-excitation and with ReLU6 (the Lite form that its authors published in 2020). Batch normalisation is folded
into the convolutions, so that training and inference compute the same.

    images ──► stem 1/2 ──► blocks 0 .. ──► 1/4 ──► 1/8 ──┬──► 1/16 ──► 1/32 ──► head ──► mean ──► 1000 logits
                                                          └ the cut: `front` ends here, `tail` goes on
"""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from transforms.chain import Chain

Layer = tf.keras.layers.Layer

#: Output channels, number of blocks, kernel size and stride of the first block: the seven stages of Lite0.
STAGES = ((16, 1, 3, 1), (24, 2, 3, 2), (40, 2, 5, 2), (80, 3, 3, 2), (112, 3, 5, 1), (192, 4, 5, 2), (320, 1, 3, 1))
STEM, HEAD, CLASSES = 32, 1280, 1000
#: Factors of the channels and of the number of blocks, and the side of the images that it was trained with.
VARIANTS = {"efficientnet_lite0": (1.0, 1.0, 224), "efficientnet_lite2": (1.1, 1.2, 260)}


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One block: channels in and out, kernel size, stride, factor of the channels inside."""

    channels: int
    filters: int
    kernel: int
    stride: int
    expand: int


def blocks(variant: str) -> list[BlockSpec]:
    """The blocks of a network of `VARIANTS`, from the image on."""
    width, depth, _ = VARIANTS[variant]
    specs, channels = [], STEM
    for stage, (filters, count, kernel, stride) in enumerate(STAGES):
        filters = _multiple_of_8(width * filters)
        if 0 < stage < len(STAGES) - 1:  # the first and the last stage keep their one block
            count = math.ceil(depth * count)
        for number in range(count):
            specs.append(BlockSpec(channels, filters, kernel, 1 if number else stride, 6 if stage else 1))
            channels = filters
    return specs


def _multiple_of_8(channels: float) -> int:
    """Rounds to a multiple of 8, never down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def cut(variant: str) -> int:
    """The number of blocks of `front`: those up to 1/8 of the resolution."""
    scale, specs = 2, blocks(variant)
    for number, spec in enumerate(specs):
        scale *= spec.stride
        if scale > 8:
            return number
    raise ValueError(f"{variant} does not go below 1/8")


def cut_channels(variant: str) -> int:
    """Channels of the features at the cut."""
    return blocks(variant)[cut(variant) - 1].filters


def _conv(filters: int, kernel: int, stride: int = 1, activation=tf.nn.relu6, name: str | None = None) -> Layer:
    return tf.keras.layers.Conv2D(filters, kernel, stride, "same", activation=activation, name=name)


class Block(Layer):
    """[1x1 expand, depthwise, 1x1 project](x), + x where the shape stays: [B, H, W, C] -> [B, H / s, W / s, c]."""

    def __init__(self, spec: BlockSpec, name: str):
        super().__init__(name=name)
        self.spec = spec
        self.expand = _conv(spec.expand * spec.channels, 1, name="expand") if spec.expand > 1 else None
        self.depthwise = tf.keras.layers.DepthwiseConv2D(
            spec.kernel, spec.stride, "same", activation=tf.nn.relu6, name="depthwise"
        )
        self.project = _conv(spec.filters, 1, activation=None, name="project")

    def build(self, input_shape):
        for layer in filter(None, (self.expand, self.depthwise, self.project)):
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return self.project.compute_output_shape(self.depthwise.compute_output_shape(input_shape))

    def call(self, x):
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.spec.stride == 1 and self.spec.filters == self.spec.channels else y


def normalise(images: tf.Tensor) -> tf.Tensor:
    """Images in 0..255 -> as the first layer takes them."""
    return (images - 127.0) / 128.0


def front(variant: str) -> Chain:
    """Images after `normalise`, float32 [B, H, W, 3] -> features [B, H / 8, W / 8, `cut_channels`]."""
    specs = blocks(variant)[: cut(variant)]
    return Chain(
        3,
        lambda: [_conv(STEM, 3, 2, name="stem"), *(Block(s, _name(k)) for k, s in enumerate(specs))],
        name="net",
    )


def tail(variant: str) -> Chain:
    """Features of `front` -> activations [B, H / 32, W / 32, 1280], whose means the last layer classifies."""
    first = cut(variant)
    specs = blocks(variant)[first:]
    return Chain(
        cut_channels(variant),
        lambda: [*(Block(s, _name(first + k)) for k, s in enumerate(specs)), _conv(HEAD, 1, name="head")],
        name="net",
    )


def _name(block: int) -> str:
    return f"block{block:02}"


def pyramid(front: Chain, tail: Chain, images: tf.Tensor) -> list[tf.Tensor]:
    """Images, float32 [B, H, W, 3] in 0..255 -> activations at 1/2, 1/4, … 1/32, of the last layer at each scale."""
    x, found = normalise(images), []
    for layer in (*front.layers, *tail.layers):
        if isinstance(layer, Block) and layer.spec.stride == 2:
            found.append(x)
        x = layer(x)
    return [*found, x]
