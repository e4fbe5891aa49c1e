"""`Codec`: a Keras model that is also a file format.

A paper's file gives a `Config`, the networks, `analyse`, `code` and `reconstruct`. The zoo gives the rest:

    models/codec/contract    what a model gives, and its hooks
    this file                one forward pass, padding, short ways to the rest
    models/codec/training    the rate–distortion loss, freezing a part, warm starts
    models/codec/adversarial the step with a discriminator
    models/codec/coding      images to bytes and back, tiles, the encoder's search, graphs
    models/codec/storage     calibration, weights files

See `models/elic.py` for how a model uses it, and `res/doc/add_a_model.md` for the smallest one.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from models.codec import coding, storage
from models.codec import training as training_steps
from models.codec.contract import Contract
from models.codec.distortion import KINDS, MS_SSIM, MSE
from models.codec.lambdas import check_lambdas
from models.codec.options import DEFAULTS, EncoderOptions
from models.codec.precision import AUTO, FLOAT32
from models.codec.variables import variables_by_path
from models.entropy import rans, tables
from models.entropy.coders import EntropyModels
from models.io.errors import UserError
from models.tools import rdoq, restoration
from transforms import exact
from transforms.chain import Chain
from transforms.gain import GainUnit


class Forward(NamedTuple):
    """The results of one pass.

    latents: decoded, as `Codec.code` returns them. images: reconstructions, float32 [B, H, W, 3] in 0..255. bits: of
    each latent, {name: float32 [B]}.
    """

    latents: object
    images: tf.Tensor
    bits: dict[str, tf.Tensor]


class Sent(NamedTuple):
    """The results of `Codec.quantise`: the analysis, the decoded latents, their bits, the coder that measured them."""

    analysed: object
    latents: object
    bits: dict[str, tf.Tensor]
    coder: object


class Codec(Contract):
    """Base of the zoo's codecs.

    Args:
      config: the architecture, an instance of the model's `Config`.
      lmbda: λ of the loss `bpp + λ · distortion`: MSE on the 0..255 scale, or see `set_distortion`. Several, in rising
        order, make a variable-rate codec: each image of a training batch draws one, and `compress` takes any `quality`
        from 1 (the first λ) to their number. (SFT has two, those of qualities 0 and 1.)

    `models/codec/contract.py` says what a model gives, and which hooks it may override.

    Raises:
      UserError: λ are not positive and rising; or there are several, and the model's `analyse` or `code` takes none of
        the controls that choose between them.
    """

    def __init__(self, config, lmbda: float | Sequence[float] = 0.01):
        super().__init__(name=type(self).__name__.lower())
        self.config = config
        self.lambdas = check_lambdas(lmbda)
        self.rate_control = self.make_rate_control()
        self._check_several_lambdas()
        self.distortion = MSE
        self.discriminator: tf.keras.layers.Layer | None = None  # see models/codec/adversarial.py
        self.frozen: str | None = None  # the part that `freeze` has frozen
        self.distilled: Callable | None = None  # a teacher's latents instead, see `freeze`
        self.path: str | None = None  # of the weights file, if loaded from one
        self.precision = FLOAT32  # of the transforms, if loaded to code
        self.weights_id = bytes(4)
        self.decodes = True  # False if it has been loaded without the synthesis
        self._entropy_models: EntropyModels | None = None
        self.set_bank(None)
        self.track(self.metric_names)

    def _check_several_lambdas(self) -> None:
        if not self.variable_rate:
            return
        controls = dict.fromkeys(self.rate_control.encode_specs)
        for method in (self.analyse, self.code):
            try:
                inspect.signature(method).bind_partial(**controls)
            except TypeError as error:
                raise UserError(
                    f"{self.name}: give one λ, not {len(self.lambdas)}: its `{method.__name__}` takes no "
                    f"{', '.join(controls)}"
                ) from error

    @classmethod
    def from_preset(cls, preset: str | None = None, precision: str = AUTO) -> Codec:
        """Loads weights of the model that ship, see `models.codec.load`.

        preset: such as `medium`, or the stem of a weights file; by default those that the model's card names.
        """
        return storage.load(cls.entry.name, preset, precision=precision)

    # ---- what the configuration says of the encoder -----------------------------------------------------------------

    @property
    def has_filter(self) -> bool:
        """Tells whether files hold a filter for their image, see `models/tools/restoration.py`."""
        return getattr(self.config, "restoration", False)

    @property
    def compensation(self) -> float:
        """The step size of the second analysis, see `coding.refine_analysis`; 0 where there is none."""
        return getattr(self.config, "compensation", 0.0)

    @property
    def rdoq(self) -> float:
        """The move penalty of RDOQ in bits, see `models/tools/rdoq.py`; 0 where RDOQ is off."""
        return getattr(self.config, "rdoq", 0.0)

    @property
    def variable_rate(self) -> bool:
        """Tells whether there are several λ, and so a quality to choose."""
        return len(self.lambdas) > 1

    @property
    def lmbda(self) -> float | tuple[float, ...]:
        """λ of the loss; a tuple where there are several."""
        return tuple(self.lambdas) if self.variable_rate else self.lambdas[0]

    def enable_filter(self) -> None:
        """Switches the restoration filter on, in a codec being trained whose `Config` has the field `restoration`."""
        self.config = dataclasses.replace(self.config, restoration=True)

    def set_distortion(self, kind: str) -> None:
        """Selects the distortion term of the loss, one of `models.codec.distortion.KINDS`.

        Filter, second analysis and RDOQ are for squared errors: they are switched off for another distortion.
        ValueError if there is no such distortion.
        """
        if kind not in KINDS:
            raise ValueError(f"no distortion named {kind}")
        self.distortion = kind
        self.track((*type(self).metric_names, *(["ms_ssim"] if kind == MS_SSIM else [])))
        if kind != MSE:
            off = {"restoration": False, "compensation": 0.0, "rdoq": 0.0}
            self.config = dataclasses.replace(self.config, **{k: v for k, v in off.items() if hasattr(self.config, k)})

    # ---- pixels -----------------------------------------------------------------------------------------------------

    @staticmethod
    def normalise(images: tf.Tensor) -> tf.Tensor:
        """Maps 0..255 to -0.5..0.5."""
        return images * (1 / 255) - 0.5

    @staticmethod
    def denormalise(images: tf.Tensor) -> tf.Tensor:
        """Maps -0.5..0.5 to 0..255, float32."""
        return (tf.cast(images, tf.float32) + 0.5) * 255

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Rounds height and width up to the stride."""
        return tuple(-(-n // s) * s for n, s in zip((height, width), self.stride))

    def pad(self, images: tf.Tensor) -> tf.Tensor:
        """Reflects [B, H, W, C] at the bottom and right edge up to the stride; any size from 1x1."""
        for axis, stride in zip((1, 2), self.stride):
            size = tf.shape(images)[axis]
            # A triangle wave of period 2 (n - 1) reflects as often as needed; a single row is repeated.
            period = tf.maximum(2 * (size - 1), 1)
            position = tf.range(-(-size // stride) * stride) % period
            images = tf.gather(images, tf.minimum(position, period - position) % size, axis=axis)
        return images

    @staticmethod
    def crop(reconstruction: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Cuts padded reconstructions down to the size of the images [B, H, W, 3]."""
        return reconstruction[:, : tf.shape(images)[1], : tf.shape(images)[2]]

    def pad_controls(self, controls: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Pads controls that are maps over the images, [B, H, W, C], as `pad` does the images."""
        return {name: self.pad(value) if len(value.shape) == 4 else value for name, value in controls.items()}

    # ---- the forward pass -------------------------------------------------------------------------------------------

    def call(self, images, training=False, **controls):
        """Maps images [B, H, W, 3] in 0..255 to (reconstruction float32 [B, H, W, 3], bits per latent {name: [B]}).

        controls: as `compress` takes them, such as quality=3; tensors are those of `transmit`, one value an image.

        With training=False latents are rounded; once tables exist (`calibrate`, `load`) the entropy networks run in
        integers and the bits are those of the tables, so that estimates and files agree.
        """
        if not any(tf.is_tensor(value) for value in controls.values()):
            _, controls = coding.controls_from_args(self, tf.shape(images)[:3], controls)
        _, reconstruction, bits = self.forward(images, controls, training)
        return reconstruction, bits

    def forward(self, images, controls: dict[str, tf.Tensor], training: bool) -> Forward:
        """Passes images [B, H, W, 3] in 0..255 through the codec once; see `call`."""
        images = tf.cast(images, tf.float32)
        controls = self.pad_controls(controls)
        sent = self.quantise(self.pad(images), controls, training)
        reconstruction = self.crop(self.reconstruct(sent.latents), images)
        if self.has_filter and sent.coder.exact:
            coefficients = coding.fit_filter(self, sent.coder, images, reconstruction, controls)
            reconstruction = restoration.apply(reconstruction, coefficients)
        return self.result(sent.latents, reconstruction, sent.bits, training)

    @staticmethod
    def result(latents, reconstruction: tf.Tensor, bits: dict[str, tf.Tensor], training: bool) -> Forward:
        """Makes a `Forward`, its images clipped to 0..255 except in training."""
        return Forward(latents, reconstruction if training else tf.clip_by_value(reconstruction, 0.0, 255.0), bits)

    def quantise(self, padded: tf.Tensor, controls: dict[str, tf.Tensor], training: bool, analyse=None) -> Sent:
        """Analyses padded images and quantises the latents.

        Latents are rounded; in training bits are those of noisy latents, and gradients pass rounding unchanged.

        analyse: used instead of `self.analyse`, by losses that need its intermediate results.
        """
        coder = training_steps.rate_coder(self, training)
        if analyse is not None:
            analysed = analyse(padded)
        elif coder.exact:
            analysed = coding.analyse_for_encoding(self, padded, controls, DEFAULTS)
        elif training:
            analysed = self.analyse(padded, **controls)
        else:
            analysed = coding.refine_analysis(self, padded, controls)
        latents = self.code(coder, analysed, tf.shape(padded)[:3], **controls)
        return Sent(analysed, latents, coder.bits, coder)

    def transmit(self, coder, images=None, shape=None, **controls):
        """Returns decoded latents: of images (encode) or, without them, from `coder` for a shape (B, H, W) (decode)."""
        if images is None:
            return self.code(coder, None, shape, **controls)
        return self.code(coder, self.analyse(images, **controls), tf.shape(images)[:3], **controls)

    # ---- training, see models/codec/training.py ---------------------------------------------------------------------

    @property
    def entropy_models(self) -> EntropyModels | None:
        """The trainable densities; made on first use, since they need TFC and coding does not."""
        if self._entropy_models is None:
            with tf.init_scope():
                self._entropy_models = self.make_entropy_models()
        return self._entropy_models

    def track(self, names: Sequence[str]) -> None:
        """Sets `metric_names` and makes an average for each."""
        self.metric_names = tuple(names)
        self._trackers = {name: tf.keras.metrics.Mean(name=name) for name in names}

    @property
    def metrics(self):
        return list(self._trackers.values())

    def update_metrics(self, figures: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Averages the figures of a step, as Keras shows them."""
        for name, value in figures.items():
            self._trackers[name].update_state(value)
        return {name: metric.result() for name, metric in self._trackers.items()}

    # AutoGraph would rewrite all that a step calls, for nothing: no Python `if` or `for` here is of tensors. Tracing
    # takes 10 s of processor time without it, 18 s with it.
    @tf.autograph.experimental.do_not_convert
    def train_step(self, data):
        """Trains one step with `losses` on a batch [B, P, P, 3]."""
        return self.update_metrics(training_steps.train_step(self, data))

    @tf.autograph.experimental.do_not_convert
    def test_step(self, data):
        return self.update_metrics(self.losses(self.batch(data), training=False))

    @property
    def trainable_weights(self) -> list[tf.Variable]:
        """The variables of densities and transforms that training changes: without those of a frozen part."""
        return training_steps.not_frozen(self, super().trainable_weights)

    # ---- variables and tables, see models/codec/storage.py ----------------------------------------------------------

    def build_variables(self, training: bool = False, synthesis: bool = True) -> None:
        """Creates variables.

        training: make those of training (float entropy networks, densities), else those of coding (integer networks).
        synthesis: make those of `decoder_parts`, too.
        """
        if training:
            self(tf.zeros([1, *self.stride, 3]), training=True)
            return
        # Filter, second analysis and RDOQ run the synthesis in the encoder.
        synthesis = synthesis or self.has_filter or self.compensation > 0 or self.rdoq > 0
        self.decodes = synthesis
        parts = () if synthesis else (getattr(self, name, None) for name in self.decoder_parts)
        skipped = {id(module) for part in parts if part is not None for module in (part, *part.submodules)}
        for layer in self.submodules:
            if isinstance(layer, (exact.EntropyNet, exact.LatentInput)):
                layer.build_integers()
            elif isinstance(layer, GainUnit) or isinstance(layer, Chain) and id(layer) not in skipped:
                layer.build()

    def named_variables(self) -> dict[str, tf.Variable]:
        """Returns all variables by path, such as `analysis/layers/0/kernel`: their names in weights files."""
        others = ("trackers/", "coder/", "graphs/")
        return {name: v for name, v in variables_by_path(self).items() if not name.startswith(others)}

    def set_bank(self, bank: tables.CdfBank | None) -> None:
        """Sets the probability tables, and drops the coder and graphs that were made from others."""
        self.bank = bank
        self._coder: rans.RansCoder | None = None
        self.graphs: coding.Graphs | None = None  # of `trace`
        self.rdoq_graphs = rdoq.Graphs(self)

    @property
    def coder(self) -> rans.RansCoder:
        """The rANS coder with the tables of these weights. ValueError if there are none yet."""
        if self.bank is None:
            raise ValueError("no tables yet: calibrate() the codec or load trained weights")
        if self._coder is None:
            self._coder = rans.RansCoder(self.bank)
        return self._coder

    def calibrate(self, images: np.ndarray) -> None:
        """Derives what coding needs from the trained weights: the tables and the integer form of the entropy networks.

        Weights are rounded to float16 first, since that is how they are stored. Tables are fitted to the symbols that
        the images give: see `CdfBank.fitted`.

        Args:
          images: calibration images, uint8 or float [N, H, W, 3]: a few hundred training crops. Activations beyond
            those that they show are clipped: with only 48 crops files were 1 % larger on Kodak, and 6 % on an image of
            loud colours.
        """
        storage.calibrate(self, images)

    def save(self, path, metadata: dict[str, str] | None = None) -> None:
        """Writes a weights file that `load` reads; `calibrate` first.

        Args:
          path: ends in .safetensors by custom.
          metadata: strings that go into its header besides model, configuration and λ.

        Raises:
          ValueError: there are no tables yet; or the tensors changed since `calibrate`; or the codec was loaded without
            its training variables.
        """
        storage.save(self, path, metadata)

    # ---- images to bytes and back, see models/codec/coding.py -------------------------------------------------------

    def compress(self, image: np.ndarray, options: EncoderOptions = DEFAULTS, **controls) -> bytes:
        """Compresses an image, uint8 [H, W, 3], to the bytes of a file.

        Args:
          image: the image.
          options: how much the encoder searches.
          controls: see `RateControl.from_args`.

        Raises:
          UserError: the model has no such control, or it is out of range.
        """
        return self.compress_batch(np.asarray(image)[None], options, **controls)[0]

    def compress_batch(self, images: np.ndarray, options: EncoderOptions = DEFAULTS, **controls) -> list[bytes]:
        """Compresses images of one size, uint8 [B, H, W, 3], to files; see `compress`.

        Each decodes alone. Where a batch rounds floats otherwise, a symbol can differ from that of the image alone.
        """
        return coding.compress_batch(self, images, options, controls)

    def compress_to(
        self, image: np.ndarray, target_bytes: int, options: EncoderOptions = DEFAULTS, **controls
    ) -> bytes:
        """Compresses an image at the highest quality of `rate_control` whose file has at most `target_bytes`.

        controls: what `compress` takes besides the quality.

        Raises:
          UserError: the weights have one rate, or even the file of the lowest quality is larger.
        """
        return coding.compress_to(self, image, target_bytes, options, controls)

    def decompress(
        self, data: bytes, groups: int | None = None, partial: bool = False, tile: int | None = None
    ) -> np.ndarray:
        """Decompresses the bytes of a file to its image, uint8 [H, W, 3].

        Args:
          data: from `compress`.
          groups: decode only so many of the latent's groups, for a quick or progressive preview (ELIC).
          partial: the file may be cut off anywhere behind its header; show what it still holds.
          tile: side of the tiles in which large images are processed, in pixels.

        Raises:
          container.StreamError: not a file of this model and these weights, damaged or cut off. One line.
        """
        return coding.decompress(self, data, groups, partial, tile)

    def latents(self, data: bytes):
        """Decodes the latents in the bytes of a file, as `transmit` returns them, B = 1: no image is made.

        Raises:
          container.StreamError: as `decompress` does.
        """
        return coding.read_latents(self, data)

    def trace(self, options: EncoderOptions = DEFAULTS) -> None:
        """Makes graphs of compressing with these options and of decompressing, for programs that handle many images.

        The first image takes 6 s longer each way (20 s with RDOQ). Each later one, of any size, takes 25 to 67 % less.
        Fused kernels round differently: pixels can differ by a level from those without graphs, and so can a few
        symbols or coefficients, where compressing looks at decoded pixels (filter, second analysis).
        """
        self.graphs = coding.Graphs(self, options)
