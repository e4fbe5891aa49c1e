"""Entropy networks that give the same integers on every device.

A decoder finds the table row of a symbol with a network. In floating point another device, another convolution
algorithm or another thread count gives other low bits, sooner or later another row, and the stream decodes to garbage.
So the networks that choose rows and means have two forms:

* the **float form**, for training: ordinary convolutions with ReLU between, which compute in bfloat16 where transforms
  do, but for what gives means and rows;
* the **integer form**, for coding: 12-bit weights and 8-bit activations carried by float32. While every partial sum
  stays below 2^24 a float32 convolution of integers is exact in any order of summation, so stock kernels do the work
  and all agree. After each layer one multiplication and one rounding bring the accumulator back to 8 bits.
  (Never a multiplication and an addition: compilers may fuse those and round differently.) FFT and Winograd, which
  libraries of GPUs may choose, do not sum products and are not exact: `algorithm_independent` makes room for that.

The method is that of He et al., "Post-Training Quantization for Cross-Platform Learned Image Compression",
arXiv 2202.07513, with float32 as the carrier.

    net = EntropyNet(32, [Conv(64, 3), Conv(128, 3)])
    y = net(x)                                            # float form: real numbers in and out
    with calibrating(net):                                # derives the integer form from what it is fed
        q = net.integers(Fixed(x_int, x_scale))
    q = net.integers(Fixed(x_int))                        # integer form: Fixed integers in and out
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from transforms import checkerboard

#: Partial sums below this are exact in float32.
EXACT = float(2**24)
#: Weights have 12 bits where the sums leave room, which TF32 still holds exactly: on Kodak 8 bits cost 0.1 % more rate.
WEIGHT_LIMIT = 2047
#: The share of a calibration set's activations that an 8-bit range covers; the rest is clipped.
PERCENTILE = 99.99


#: `algorithm_independent` splits a weight into this many times a high part, plus a low part of at most half this
#: number. Neither part is larger than the weight, so their sums are within the exact range, too.
HIGH = 32.0
_algorithm_independent: bool | None = None


@contextlib.contextmanager
def algorithm_independent(wanted: bool | None = True):
    """Inside, the integer form is exact whatever algorithm the convolutions use, in twice their time.

    FFT and Winograd err in proportion to the size of what they sum. With 12-bit weights that can be a unit (of one FFT
    with the weights of ELIC `medium` up to 0.3, and more on other images); with their halves, 6 bits each, it is some
    hundredths, which rounding takes away.

    wanted: None asks TensorFlow: True where it sees a GPU, whose library chooses algorithms by trying them. That is so
      outside of this, too. A graph keeps what was so when it was made.
    """
    global _algorithm_independent
    before, _algorithm_independent = _algorithm_independent, wanted
    try:
        yield
    finally:
        _algorithm_independent = before


def _algorithm_is_unknown() -> bool:
    return bool(tf.config.list_logical_devices("GPU")) if _algorithm_independent is None else _algorithm_independent


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Fixed-point numbers: `value` holds integers, `value * scale` are the real numbers.

    value: float32 [..., C], integers of magnitude at most 255.
    scale: float [C], real size of one step. Only calibration reads it; at coding time it is part of the weights that
      follow, and None.
    """

    value: tf.Tensor
    scale: np.ndarray | None = None


def concat(parts: Sequence[Fixed | tf.Tensor]) -> Fixed | tf.Tensor:
    """Concatenates along the channels."""
    if not isinstance(parts[0], Fixed):
        return tf.concat(parts, -1)
    known = all(p.scale is not None for p in parts)
    return Fixed(tf.concat([p.value for p in parts], -1), np.concatenate([p.scale for p in parts]) if known else None)


def spatially(function, x: Fixed | tf.Tensor) -> Fixed | tf.Tensor | tuple:
    """Applies a `function` that moves positions and leaves channels alone (a crop, a split into halves)."""
    if not isinstance(x, Fixed):
        return function(x)
    result = function(x.value)
    return tuple(Fixed(r, x.scale) for r in result) if isinstance(result, tuple) else Fixed(result, x.scale)


def zeros(like: Fixed | tf.Tensor, channels: int) -> Fixed | tf.Tensor:
    """Zeros at the positions of `like`, `channels` deep. Calibration gives them no weight."""
    shape = tf.shape(like.value if isinstance(like, Fixed) else like)
    value = tf.zeros(tf.concat([shape[:-1], [channels]], 0))
    return Fixed(value, np.zeros(channels)) if isinstance(like, Fixed) else value


@dataclasses.dataclass(frozen=True)
class Conv:
    """One convolution of an `EntropyNet`.

    filters: output channels.
    size: side of the kernel.
    up: 1, or 2 for a transposed convolution of stride 2.
    masked: the checkerboard-masked 5x5 convolution from anchors to non-anchors (half-width tensors).
    """

    filters: int
    size: int = 1
    up: int = 1
    masked: bool = False

    def kernel_shape(self, channels: int) -> list[int]:
        if self.masked:
            return [len(checkerboard.TAPS), channels, self.filters]
        if self.up > 1:
            return [self.size, self.size, self.filters, channels]
        return [self.size, self.size, channels, self.filters]

    def output_axis(self) -> int:
        """Returns the axis of the kernel's output channels."""
        return 2 if self.up > 1 and not self.masked else -1

    def fan_in(self, channels: int) -> int:
        taps = len(checkerboard.TAPS) if self.masked else self.size**2
        return taps * channels // self.up**2

    def __call__(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Applies `kernel` to x [B, H, W, C] ("same" padding)."""
        if self.masked:
            return checkerboard.from_anchors(x, kernel)
        if self.up > 1:
            shape = tf.shape(x)
            output = [shape[0], self.up * shape[1], self.up * shape[2], self.filters]
            return tf.nn.conv2d_transpose(x, kernel, output, self.up, "SAME")
        return tf.nn.conv2d(x, kernel, 1, "SAME")


class Output:
    """Output of the integer form of a network's last layer: one of the constants below, per network."""

    FEATURES = "features"  # signed 8-bit features with calibrated scales, for another network
    PARAMETERS = "parameters"  # first half: means in steps of MEAN_STEP; second half: table rows
    ROWS = "rows"  # table rows alone


#: Resolution of the means: 1/16 of a symbol.
MEAN_STEP = 1 / 16
#: Means are kept within +-2^15 steps, so that latents stay exact in float32.
MEAN_LIMIT = 2.0**15


class _IntegerConv(tf.Module):
    """The integer form of one convolution: kernel (int16), bias (int32), multiplier (float32 [filters])."""

    def __init__(self, conv: Conv, channels: int, name: str):
        super().__init__(name)
        self.conv = conv

        def variable(shape, dtype, label):
            return tf.Variable(tf.zeros(shape, dtype), trainable=False, name=label)

        self.kernel = variable(conv.kernel_shape(channels), np.int16, "kernel")
        self.bias = variable([conv.filters], np.int32, "bias")
        self.multiplier = variable([conv.filters], np.float32, "multiplier")

    def accumulate(self, x: tf.Tensor) -> tf.Tensor:
        """Exact integers [..., filters] of magnitude below 2^24."""
        kernel = tf.cast(self.kernel, tf.float32)
        if _algorithm_is_unknown():
            high = tf.round(kernel / HIGH)
            low = kernel - HIGH * high
            acc = HIGH * tf.round(self.conv(x, high)) + tf.round(self.conv(x, low))
        else:
            acc = tf.round(self.conv(x, kernel))
        return acc + tf.cast(self.bias, tf.float32)

    def quantise(self, kernel: np.ndarray, bias: np.ndarray, in_scale: np.ndarray, in_limit: float) -> np.ndarray:
        """Sets kernel and bias; returns the real size of one unit of the accumulator, [filters].

        kernel, bias: float32, real. in_scale: [C], real size of one input step. in_limit: largest input magnitude.
        """
        conv = self.conv
        # Everything below has the output channel last.
        w = kernel.astype(np.float64)
        if conv.output_axis() == 2:
            w = np.swapaxes(w, 2, 3)
        w = w * in_scale[:, None]
        flat = w.reshape(-1, w.shape[-1])
        step = np.maximum(np.abs(flat).max(0), 1e-12) / WEIGHT_LIMIT
        # A bias beyond 2^23 steps, or sums that could leave the exact range, coarsen the channel's step.
        step = np.maximum(step, np.abs(bias) / 2**23)
        while True:
            bound = np.abs(np.rint(flat / step)).sum(0) * in_limit + np.abs(np.rint(bias / step))
            if (bound < EXACT).all():
                break
            step = np.where(bound < EXACT, step, step * np.maximum(bound / EXACT * 1.01, 1.01))
        quantised = np.rint(w / step)
        if conv.output_axis() == 2:
            quantised = np.swapaxes(quantised, 2, 3)
        self.kernel.assign(quantised.astype(np.int16))
        self.bias.assign(np.rint(bias / step).astype(np.int32))
        return step


class EntropyNet(tf.keras.layers.Layer):
    """A stack of convolutions with ReLU between (none after the last), in a float and an integer form.

    Args:
      channels: of its input.
      convs: the layers, in order.
      output: what the integer form of the last layer gives; see `Output`.
      output_gain, output_bias: for PARAMETERS and ROWS: the row index is `gain * x + bias`, x what the last layer (its
        second half for PARAMETERS) gives. (In the float form x is the natural logarithm of a Gaussian's scale, or the
        logit of a bit; this turns it into a row of the table.)
      rows: number of table rows; row indexes are clipped to [0, rows).
    """

    def __init__(
        self,
        channels: int,
        convs: Sequence[Conv],
        output: str = Output.FEATURES,
        output_gain: float = 1.0,
        output_bias: float = 0.0,
        rows: int = 64,
        name: str | None = None,
    ):
        super().__init__(name=name, dtype="float32")  # takes and gives float32 under any mixed-precision policy
        # Integers of 8 bits replace these activations when coding: bfloat16's 8 are no loss. float16 could overflow.
        bfloat16 = tf.keras.mixed_precision.global_policy().compute_dtype == "bfloat16"
        self._hidden_dtype = tf.bfloat16 if bfloat16 else tf.float32
        self.channels = channels
        self.convs = tuple(convs)
        self.output_kind = output
        self.output_gain, self.output_bias, self.rows = output_gain, output_bias, rows
        #: Output channels that are means; those behind them are rows.
        self._means = self.convs[-1].filters // 2 if output == Output.PARAMETERS else 0
        self.integer_convs: list[_IntegerConv] = []
        self.calibrating = False
        self._max_scale: dict[int, np.ndarray] = {}

    def build(self, input_shape=None):
        """Makes the variables of the float form."""
        channels = self.channels
        self.kernels, self.biases = [], []
        for number, conv in enumerate(self.convs):
            gain = 6.0 if number + 1 < len(self.convs) else 3.0  # He uniform before a ReLU, LeCun uniform at the end
            limit = np.sqrt(gain / conv.fan_in(channels))
            uniform = tf.keras.initializers.RandomUniform(-limit, limit)
            self.kernels.append(self.add_weight(f"kernel{number}", conv.kernel_shape(channels), initializer=uniform))
            self.biases.append(self.add_weight(f"bias{number}", [conv.filters], initializer="zeros"))
            channels = conv.filters
        super().build(input_shape)

    def build_integers(self) -> None:
        """Makes the variables of the integer form. Coding needs these only, training the others only."""
        if self.integer_convs:
            return
        channels = self.channels
        with tf.init_scope():
            for number, conv in enumerate(self.convs):
                self.integer_convs.append(_IntegerConv(conv, channels, f"integer{number}"))
                channels = conv.filters

    def call(self, x):
        """Float form: [B, H, W, C] -> float32 [B, H', W', filters of the last layer]."""
        for number, (conv, kernel, bias) in enumerate(zip(self.convs, self.kernels, self.biases)):
            last = number + 1 == len(self.convs)
            # A mean of 100 in bfloat16 would be off by a quarter of a symbol.
            dtype = tf.float32 if last and self.output_kind != Output.FEATURES else self._hidden_dtype
            x = conv(tf.cast(x, dtype), tf.cast(kernel, dtype)) + tf.cast(bias, dtype)
            if not last:
                x = tf.nn.relu(x)
        return tf.cast(x, tf.float32)

    def run(self, x: Fixed | tf.Tensor) -> Fixed | tf.Tensor:
        """The integer form of `Fixed` numbers, the float form of a tensor."""
        return self.integers(x) if isinstance(x, Fixed) else self(x)

    def integers(self, x: Fixed) -> Fixed:
        """Integer form, [B, H, W, C] -> [B, H', W', filters].

        With Output.FEATURES, 8-bit features. With Output.PARAMETERS, means (multiples of MEAN_STEP) and table rows
        (0 .. rows - 1) one after the other along the channels; with Output.ROWS, rows alone.
        """
        self.build_integers()
        value, scale, in_limit = x.value, x.scale, 127.0
        for number, integer in enumerate(self.integer_convs):
            last = number + 1 == len(self.convs)
            if self.calibrating:
                scale = self._calibrate(number, value, scale, in_limit, last)
            acc = integer.accumulate(value)
            if not last:
                value, in_limit = tf.clip_by_value(tf.round(acc * integer.multiplier), 0.0, 255.0), 255.0
            elif self.output_kind == Output.FEATURES:
                value = tf.clip_by_value(tf.round(acc * integer.multiplier), -127.0, 127.0)
            else:
                mean, row = tf.split(tf.round(acc * integer.multiplier), [self._means, -1], -1)
                mean = tf.clip_by_value(mean, -MEAN_LIMIT, MEAN_LIMIT) * MEAN_STEP
                value = tf.concat([mean, tf.clip_by_value(row, 0.0, self.rows - 1.0)], -1)
        return Fixed(value, scale if self.calibrating else None)

    def _calibrate(self, number: int, value: tf.Tensor, scale, in_limit: float, last: bool) -> np.ndarray | None:
        """Derives layer `number` from the activations it is fed; returns the real size of its output steps."""
        integer = self.integer_convs[number]
        kernel, bias = self.kernels[number].numpy(), self.biases[number].numpy().astype(np.float64)
        parameters = last and self.output_kind != Output.FEATURES
        if parameters:
            sizes = [self._means, bias.size - self._means]
            gain = np.repeat([1.0, self.output_gain], sizes).astype(np.float32)
            kernel = kernel * gain
            bias = bias * gain + np.repeat([0.0, self.output_bias], sizes)
        step = integer.quantise(kernel, bias, np.asarray(scale, np.float64), in_limit)
        if parameters:
            out_scale = np.repeat([MEAN_STEP, 1.0], sizes)
        else:
            real = integer.accumulate(value).numpy().reshape(-1, bias.size) * step
            # A network that is called several times (anchors, then non-anchors) covers all of them.
            out_scale = np.maximum(output_scale(real, relu=not last), self._max_scale.get(number, 0))
            self._max_scale[number] = out_scale
        integer.multiplier.assign((step / out_scale).astype(np.float32))
        return None if parameters else out_scale


def output_scale(real: np.ndarray, relu: bool) -> np.ndarray:
    """Real size of one 8-bit step for activations `real` [n, C]: [C].

    Covers `PERCENTILE` of each channel. A channel that hardly speaks on the calibration set gets a hundredth of the
    loudest channel's step, so that it is not clipped at nothing on other images.
    """
    magnitude = np.maximum(real, 0) if relu else np.abs(real)
    top = np.percentile(magnitude, PERCENTILE, axis=0)
    top = np.maximum(top, max(0.01 * top.max(), 1e-6))
    return top / (255 if relu else 127)


class LatentInput(tf.keras.layers.Layer):
    """Brings decoded latents (multiples of `MEAN_STEP`) to the 8-bit steps that an integer network takes.

    One step size per channel, a power of two between `MEAN_STEP` and 2^10, found in calibration.
    """

    def __init__(self, channels: int, name: str | None = None):
        super().__init__(name=name, dtype="float32")
        self.channels = channels
        self.calibrating = False
        self._max_scale: dict[int, np.ndarray] = {}
        self.inverse_step: tf.Variable | None = None  # made when the integer form is first used, as the networks' are

    def build_integers(self) -> None:
        """Makes the variable of the integer form."""
        if self.inverse_step is None:
            with tf.init_scope():
                self.inverse_step = tf.Variable(tf.ones([self.channels]), trainable=False, name="inverse_step")

    def run(self, latents: tf.Tensor, exact: bool) -> Fixed | tf.Tensor:
        """Makes a network's input: `Fixed` numbers for its integer form, the latents themselves for its float form."""
        return self.integers(latents) if exact else latents

    def integers(self, latents: tf.Tensor) -> Fixed:
        """Latents [..., C] -> Fixed of magnitude <= 127. Multiplying by a power of two is exact.

        Integers have no gradient; a tape that watches the latents does not keep what networks make of these.
        """
        latents = tf.stop_gradient(latents)
        if self.inverse_step is None:
            with tf.init_scope():
                self.inverse_step = tf.Variable(tf.ones([self.channels]), trainable=False, name="inverse_step")
        if self.calibrating:
            top = np.percentile(np.abs(latents.numpy().reshape(-1, latents.shape[-1])), PERCENTILE, axis=0)
            exponent = np.clip(np.ceil(np.log2(np.maximum(top, 1e-9) / 127)), np.log2(MEAN_STEP), 10)
            exponent = self._max_scale[0] = np.maximum(exponent, self._max_scale.get(0, -np.inf))
            self.inverse_step.assign((2.0**-exponent).astype(np.float32))
        value = tf.clip_by_value(tf.round(latents * self.inverse_step), -127.0, 127.0)
        return Fixed(value, 1 / self.inverse_step.numpy() if self.calibrating else None)


@contextlib.contextmanager
def calibrating(layers: Iterable[tf.keras.layers.Layer]):
    """Lets every `EntropyNet` and `LatentInput` among `layers` derive its integer form from what it is fed.

    Feed it several batches: ranges cover all of them.
    """
    chosen = [layer for layer in layers if isinstance(layer, (EntropyNet, LatentInput))]
    for layer in chosen:
        layer.calibrating, layer._max_scale = True, {}
    try:
        yield
    finally:
        for layer in chosen:
            layer.calibrating = False
