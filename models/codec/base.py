"""`Codec`: a Keras model that is also a file format.

A paper's file gives a `Config`, the transforms, `analyse`, `code` and `reconstruct`; this module gives the rest:
padding to the stride and cropping back, tiles for large pictures, the rate-distortion training step, compressing to and
decompressing from bytes, and the weights file. See `models/elic.py` for how a model uses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from models.app.flags import Flags
from models.codec import registry, weights
from models.codec.distortion import KINDS, MS_SSIM, MSE, distortion, ms_ssim
from models.codec.lambdas import at_quality, check_lambdas
from models.codec.rate_control import QualityLevels, RateControl
from models.codec.variables import pad_with, through_float16, variables_by_path, without_initialisers
from models.entropy import container, rans, tables
from models.entropy.coders import (
    EntropyModels,
    FloatRate,
    HardRate,
    LatentCoder,
    SoftRate,
    SymbolCount,
    TableRate,
    TrainingRate,
)
from models.io.errors import UserError, one_line
from models.tools import restoration
from models.tools.rdoq import Graphs, optimise_symbols
from models.tools.refine import Refiner, check_refinable
from models.tools.target_size import largest_within
from transforms import exact, tiling
from transforms.chain import Chain
from transforms.gain import STEPS, GainUnit

CALIBRATION_BATCH = 32


class Codec(Flags, tf.keras.Model):
    """Base of the zoo's codecs.

    Args:
      config: the architecture, an instance of the model's `Config`.
      lmbda: λ of the loss `bpp + λ · MSE`, MSE on the 0..255 scale. Several, in rising order, make a variable-rate
        codec: each picture of a training batch draws one, and `compress` takes any `quality` from 1 (the first λ) to
        their number.

    A model gives:
      stride: rows and columns of pixels that a picture is padded to a multiple of.
      analyse(images, **controls): what is made of the pixels before anything is coded: a float32 tensor or a structure
        of such. images: float32 [B, H, W, 3] in 0..255, padded.
      code(coder, analysed, shape, **controls): **one** method for both directions. It walks the latents in coding order
        and hands each to `coder` (`models/entropy/coders.py`), which returns it decoded. analysed: of `analyse`; None
        when decoding. shape: (B, H, W) of the padded images. Returns the decoded latents.
      reconstruct(latents): the synthesis, float32 [B, H, W, 3] in 0..255.
      reach: how far `analyse` and `reconstruct` reach, for tiles; None if each pixel depends on all of the picture.
      prior_channels(): channels of the factorised prior.

    and, where it differs from the usual: `losses` (with `metric_names`) and `rate_distortion`, `make_entropy_models`
    and `table_rows` (what latents are coded with), `make_rate_control` (what can be asked for besides the picture),
    `symbol_scale` (with `refinable`), `settings` and `from_settings` (what its weights file says of the training),
    labels (`batch`, `check_classes`), what it tells of latents besides a picture (`latent_outputs`,
    `stream_commands`), and its flags on the command line (`models/app/flags.py`).
    """

    stride: tuple[int, int] = (64, 64)
    metric_names: tuple[str, ...] = ("loss", "bpp", "mse", "psnr")
    #: The parts that only decoding needs, by name.
    decoder_parts: tuple[str, ...] = ("synthesis",)
    #: Those that only encoding needs, for models that `fix` parts of.
    encoder_parts: tuple[str, ...] = ()
    reach: tiling.Reach | None = None
    #: Whether `compress` can refine latents: `analyse` gives one tensor of latents, and `losses` are of
    #: `rate_distortion` alone.
    refinable = False
    #: The row of the tables from which the Gaussians are, with which filters are coded (`has_filter`).
    gaussians = 0
    #: Side of the tiles in which pictures are worked through, in pixels; None: as `transforms.tiling` sees fit.
    tile: int | None = None
    #: Rounds in which better symbols are looked for before a file is written, where the weights have `rdoq`.
    effort: int = 6
    #: What these rounds go through where they are not part of a graph: `tqdm` would show how far they have come.
    progress: Callable[[range], Iterable[int]] = staticmethod(iter)
    entry = None  # set by registry.register

    def __init__(self, config, lmbda: float | Sequence[float] = 0.01):
        super().__init__(name=type(self).__name__.lower())
        self.config = config
        self.lambdas = check_lambdas(lmbda)
        self.rate_control = self.make_rate_control()
        self.bank: tables.CdfBank | None = None
        self._coder: rans.RansCoder | None = None
        self._traced: dict = {}
        self.weights_id = bytes(4)
        self.path: str | None = None  # of the weights file, if loaded from one
        self.decodes = True  # False if it has been loaded without the synthesis
        self._entropy_models: EntropyModels | None = None
        self.frozen: str | None = None  # the part that `fix` has fixed
        self._sender: Callable | None = None  # `_sent_as_files` of the codec whose symbols this one learns from
        self._refiner: Refiner | None = None
        self.rdoq_graphs = Graphs(self)  # for `optimise_symbols`
        self.distortion = MSE  # what losses weigh against bits: see `set_distortion`
        self._track(self.metric_names)

    # ---- what a model gives -------------------------------------------------------------------------------------

    def analyse(self, images, **controls):
        raise NotImplementedError

    def code(self, coder, analysed, shape, **controls):
        raise NotImplementedError

    def reconstruct(self, latents):
        raise NotImplementedError

    def prior_channels(self) -> int:
        raise NotImplementedError

    @property
    def has_filter(self) -> bool:
        """Whether files hold a filter for their image (`models/tools/restoration.py`): if the configuration says so."""
        return getattr(self.config, "restoration", False)

    @property
    def compensation(self) -> float:
        """How much a second analysis makes up for in files, see `refine_analysis`: what the configuration says."""
        return getattr(self.config, "compensation", 0.0)

    @property
    def rdoq(self) -> float:
        """The move penalty of RDOQ, see `models/tools/rdoq.py`; 0 where no symbol moves."""
        return getattr(self.config, "rdoq", 0.0)

    def enable_filter(self) -> None:
        """Lets the files of a codec that is trained hold filters; of one whose configuration has `restoration`."""
        self.config = dataclasses.replace(self.config, restoration=True)

    def set_distortion(self, kind: str) -> None:
        """From now on losses are of that distortion, one of `models.codec.distortion.KINDS`.

        Filters, compensation and `rdoq` are for squared errors: the files of weights for another distortion have none.
        ValueError if there is no such distortion.
        """
        if kind not in KINDS:
            raise ValueError(f"no distortion named {kind}")
        self.distortion = kind
        self._track((*type(self).metric_names, *(["ms_ssim"] if kind == MS_SSIM else [])))
        if kind != MSE:
            off = {"restoration": False, "compensation": 0.0, "rdoq": 0.0}
            self.config = dataclasses.replace(self.config, **{k: v for k, v in off.items() if hasattr(self.config, k)})

    def _track(self, names: Sequence[str]) -> None:
        """Sets `metric_names`, and what averages them."""
        self.metric_names = tuple(names)
        self._trackers = {name: tf.keras.metrics.Mean(name=name) for name in names}

    def init_pca(self) -> None:
        """Lets untrained transforms begin as a linear one, where a model can; see `transforms/starts/linear.py`."""
        raise NotImplementedError

    def make_rate_control(self) -> RateControl:
        """What can be asked of these weights: a quality where there are several λ, else nothing."""
        return QualityLevels(len(self.lambdas)) if self.variable_rate else RateControl()

    def make_entropy_models(self) -> EntropyModels | None:
        """The densities that are trained; None where networks predict all probabilities."""
        return EntropyModels(self.prior_channels())

    def table_rows(self) -> list[tables.Row]:
        """The rows of the CDF bank, not fitted yet: Gaussians, then one for each channel of the factorised prior."""
        pmf, offset = self.entropy_models.prior_pmf()
        return [*tables.gaussian_rows(), *tables.factorized_rows(pmf.T, offset)]

    def settings(self) -> dict[str, str]:
        """What a weights file says of the training besides the configuration, and `from_settings` reads."""
        judged = {} if self.distortion == MSE else {"distortion": self.distortion}
        return {"lambda": ",".join(map(str, self.lambdas)), **judged}

    @classmethod
    def from_settings(cls, config, settings: Mapping[str, str]) -> Codec:
        """A codec of a configuration and its `settings`; ValueError or UserError if they are none."""
        codec = cls(config, lmbda=[float(value) for value in settings.get("lambda", "").split(",")])
        codec.set_distortion(settings.get("distortion", MSE))
        return codec

    def transmit(self, coder, images=None, shape=None, **controls):
        """Images through `analyse` and `code`; without them, `code` for a shape (B, H, W). The decoded latents."""
        if images is None:
            return self.code(coder, None, shape, **controls)
        return self.code(coder, self.analyse(images, **controls), tf.shape(images)[:3], **controls)

    # ---- pixels -------------------------------------------------------------------------------------------------

    @staticmethod
    def normalise(images: tf.Tensor) -> tf.Tensor:
        """0..255 to -0.5..0.5."""
        return images * (1 / 255) - 0.5

    @staticmethod
    def denormalise(images: tf.Tensor) -> tf.Tensor:
        """-0.5..0.5 to 0..255, float32."""
        return (tf.cast(images, tf.float32) + 0.5) * 255

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width rounded up to the stride."""
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

    # ---- the differentiable path ----------------------------------------------------------------------------------

    @property
    def lmbda(self) -> float | tuple[float, ...]:
        """λ of the loss; a tuple where there are several."""
        return tuple(self.lambdas) if self.variable_rate else self.lambdas[0]

    @property
    def entropy_models(self) -> EntropyModels | None:
        """The trainable densities, made when first asked for: they need TFC, which coding does not."""
        if self._entropy_models is None:
            with tf.init_scope():
                self._entropy_models = self.make_entropy_models()
        return self._entropy_models

    def _rate_coder(self, training: bool):
        if training:
            kind = {None: TrainingRate, "encoder": HardRate, "decoder": SoftRate}[self.frozen]
            return kind(self.entropy_models)
        return FloatRate(self.entropy_models) if self.bank is None else TableRate(self.bank)

    def call(self, images, training=False, **controls):
        """Images [B, H, W, 3] in 0..255 -> (reconstruction float32 [B, H, W, 3], bits per latent {name: [B]}).

        controls: as `transmit` has them, such as a quality; those of `rate_control` without a wish by default.

        With training=False latents are rounded; once tables exist (`calibrate`, `load`) the entropy networks run in
        integers and the bits are those of the tables, so that estimates and files agree.
        """
        images = tf.cast(images, tf.float32)
        shape = tf.shape(images)
        controls = self.pad_controls(controls or self.rate_control.from_args(shape[:3])[1])
        padded = self.pad(images)
        learns = self._sender is not None and self.bank is None  # from files; once it has tables it makes its own
        latents, coder = self._sender(padded, controls) if learns else self._sent(padded, controls, training)
        reconstruction = self.reconstruct(latents)[:, : shape[1], : shape[2]]
        if self.has_filter and coder.exact and not learns:
            coefficients = self._fit_filter(coder, images, reconstruction, controls)
            reconstruction = restoration.apply(reconstruction, coefficients)
        if not training:
            reconstruction = tf.clip_by_value(reconstruction, 0.0, 255.0)
        return reconstruction, coder.bits

    def _sent(self, padded: tf.Tensor, controls: dict[str, tf.Tensor], training: bool):
        """Decoded latents of padded pictures, and what has counted their bits."""
        coder = self._rate_coder(training)
        if coder.exact:
            analysed = self.analyse_for_encoding(padded, controls)
        else:
            analysed = self.analyse(padded, **controls) if training else self.refine_analysis(padded, controls)
        return self.code(coder, analysed, tf.shape(padded)[:3], **controls), coder

    def _sent_as_files(self, padded: tf.Tensor, controls: dict[str, tf.Tensor]):
        """`_sent` by one that does not learn; for another one that does."""
        latents, coder = self._sent(padded, controls, training=False)
        return tf.nest.map_structure(tf.stop_gradient, latents), coder

    def _fit_filter(self, coder, images: tf.Tensor, decoded: tf.Tensor, controls: dict) -> tf.Tensor:
        """Fits a filter to decoded pictures [B, H, W, 3], and codes it where it is worth its bits. The coefficients."""
        found, saved = restoration.fit(images, decoded, self.error_weights(tf.shape(images), **controls))
        size, batch = TableRate(self.bank), tf.shape(found)[0]
        restoration.code(size, found, batch, self.gaussians)
        bpp = size.bits["restoration"] / tf.cast(tf.shape(images)[1] * tf.shape(images)[2], tf.float32)
        return restoration.code(coder, tf.where((saved > bpp)[:, None], found, 0), batch, self.gaussians)

    @staticmethod
    def batch(data):
        """Of a batch of a data set, what `losses` takes: the images. Labelled pictures come as (images, labels)."""
        # Keras hands over an array as (array,), and an element of a data set as it is.
        return tf.keras.utils.unpack_x_y_sample_weight(data)[0]

    def check_classes(self, classes: Sequence[str]) -> None:
        """UserError if pictures with labels of these classes, in this order, are none to train with. All are."""

    def losses(self, images, training: bool) -> dict[str, tf.Tensor]:
        """The figures of `metric_names` for a batch [B, H, W, 3] in 0..255: scalars, "loss" the one to minimise.

        Where there are several λ the levels are weighted in training (`_level_weights`), and not in validation.
        """
        images = tf.cast(images, tf.float32)
        batch = tf.shape(images)[0]
        levels = len(self.lambdas)
        if training and levels > 1:
            level = self._training_levels(batch)
        else:
            level = validation_draws(images, levels)
        controls = {"quality": level * STEPS} if self.variable_rate else {}
        reconstruction, bits = self(images, training=training, **controls)
        figures = self.rate_and_distortion(images, reconstruction, bits, training)
        figures["loss"] = self.rate_distortion(images, reconstruction, figures["bpp"], **controls)
        if "ms_ssim" in self.metric_names:
            figures["ms_ssim"] = ms_ssim(images, reconstruction)
        if training and levels > 1:
            figures["loss"] *= tf.gather(self._level_weights(), level)
        return {name: tf.reduce_mean(figures[name]) for name in self.metric_names}

    def rate_distortion(self, images, reconstruction, bpp: tf.Tensor, quality: tf.Tensor | None = None) -> tf.Tensor:
        """bpp + λ · distortion of pictures [B, H, W, 3] in 0..255 and their bpp [B]: [B]; controls as of `transmit`."""
        return bpp + self._lambda_of(quality) * distortion(self.distortion, images, reconstruction)

    def _lambda_of(self, quality: tf.Tensor | None = None):
        """λ of pictures of a quality, int32 [B] in steps of `rate_control`; the one λ where there is no quality."""
        return self.lambdas[0] if quality is None else at_quality(self.lambdas, quality)

    def error_weights(self, shape: tf.Tensor, **controls) -> tf.Tensor:
        """λ at each pixel, float32 [B, H, W, 1], of pictures of a shape (B, H, W, …); controls as of `transmit`."""
        lmbda = tf.reshape(tf.cast(self._lambda_of(**controls), tf.float32), [-1, 1, 1, 1])
        return tf.broadcast_to(lmbda, [shape[0], shape[1], shape[2], 1])

    def symbol_scale(self, **controls) -> tf.Tensor:
        """What `analyse` gives in units of the quantiser's step: factors that broadcast to it.

        For refinement and compensation.
        """
        return tf.ones([])

    def unquantised(self, analysed, **controls):
        """The latents that `code` would return if nothing were rounded. For compensation."""
        return analysed

    def _training_levels(self, batch: tf.Tensor) -> tf.Tensor:
        """A level per picture at random, int32 [batch], each as likely as the others; those of a batch are spread.

        Levels differ in their gradients: a batch of few pictures is a steadier sample so.
        """
        levels = len(self.lambdas)
        place = tf.cast(tf.range(batch), tf.float32) / tf.cast(batch, tf.float32)
        return tf.cast(tf.floor((tf.random.uniform([]) + place) % 1.0 * levels), tf.int32)

    def _level_weights(self) -> tf.Tensor:
        """What the loss at each level counts in training: float32 [levels], 1 in the mean.

        A BD-rate weighs what is saved of a rate by that rate, and rates go with the square root of λ, about. With equal
        weights the levels of high rates, whose losses are the largest, would have most of the say.
        """
        weights = 1 / np.sqrt(self.lambdas)
        return tf.constant(weights / np.mean(weights), tf.float32)

    @staticmethod
    def rate_and_distortion(images, reconstruction, bits: dict, training: bool) -> dict[str, tf.Tensor]:
        """Of what `call` gives for images [B, H, W, 3]: "bpp", "mse" (0..255 scale), "psnr" (dB), each [B]."""
        pixels = tf.cast(tf.shape(images)[1] * tf.shape(images)[2], tf.float32)
        bpp = tf.add_n(list(bits.values())) / pixels
        if not training:
            reconstruction = tf.clip_by_value(reconstruction, 0.0, 255.0)
        mse = tf.reduce_mean(tf.math.squared_difference(reconstruction, images), [1, 2, 3])
        return {"bpp": bpp, "mse": mse, "psnr": 10 * tf.math.log(255.0**2 / tf.maximum(mse, 1e-9)) / np.log(10.0)}

    def _update(self, losses: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        for name, value in losses.items():
            self._trackers[name].update_state(value)
        return {name: metric.result() for name, metric in self._trackers.items()}

    @property
    def metrics(self):
        return list(self._trackers.values())

    def train_step(self, data):
        """One step of `losses` on a batch [B, P, P, 3]."""
        with tf.GradientTape() as tape:
            losses = self.losses(self.batch(data), training=True)
            # Under tf.distribute gradients are summed over replicas: each contributes its share of the global mean.
            loss = losses["loss"] / tf.distribute.get_strategy().num_replicas_in_sync
        # `minimize` scales the loss where float16 needs it.
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return self._update(losses)

    def test_step(self, data):
        return self._update(self.losses(self.batch(data), training=False))

    def freeze(self, part: str | None, sender: Codec | None = None) -> None:
        """From now on trains one part for the others, each with what only works for it.

        Args:
          part: what stays. "encoder": all others learn from latents rounded as in files, see `HardRate`; "decoder",
            which is all but `encoder_parts`: these learn from latents that are rounded softly, see `SoftRate`;
            "latents", which is all but `decoder_parts`: these learn from latents as files have them, with the symbols
            that `sender` chooses. None: nothing stays.
          sender: for "latents", a codec of the same configuration that compresses: `load` of the same weights.

        Raises ValueError for latents without a sender, or the reverse.
        """
        if (part == "latents") != (sender is not None):
            raise ValueError("latents need a sender, and only these")
        self.frozen = part
        # A method, which Keras does not take for a part of this model as it would the codec.
        self._sender = None if sender is None else sender._sent_as_files

    @property
    def trainable_weights(self) -> list[tf.Variable]:
        """What training changes: the variables of densities and transforms, less those of a part that is fixed."""
        found = super().trainable_weights
        if self.frozen is None:
            return found
        parts = self.decoder_parts if self.frozen == "latents" else self.encoder_parts
        variables = self.named_variables().items()
        among = {v.ref() for name, v in variables if name.split("/")[0] in parts}
        return [v for v in found if (v.ref() in among) == (self.frozen != "encoder")]

    # ---- variables and tables: what a weights file holds ------------------------------------------------------------

    def build_variables(self, training: bool = False, synthesis: bool = True) -> None:
        """Creates variables.

        training: those of training (float entropy networks, densities); else those of coding (integer networks).
        synthesis: also those of `decoder_parts`.
        """
        if training:
            self(tf.zeros([1, *self.stride, 3]), training=True)
            return
        # A sender has to see what a receiver will.
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
        """All variables of the model by path, such as `analysis/layers/0/kernel`. They are stored under these names."""
        found = variables_by_path(self)
        return {name: v for name, v in found.items() if not name.startswith(("trackers/", "coder/", "traced/"))}

    def calibrate(self, images: np.ndarray) -> None:
        """Derives what coding needs from the trained weights: the tables and the integer form of the entropy networks.

        Weights are rounded to float16 first, since that is how they are stored. Tables are fitted to the symbols that
        the pictures give: see `CdfBank.fitted`.

        Args:
          images: calibration pictures, uint8 or float [N, H, W, 3]: a few hundred training crops. What they do not show
            is clipped: 48 crops cost 1 % of the rate on Kodak, and 6 % on a picture of loud colours.
        """
        for variable in self.named_variables().values():
            if variable.trainable:
                variable.assign(through_float16(variable.numpy()))
        self._set_bank(tables.CdfBank.from_pmfs(self.table_rows()))

        def show_all(coder, analyse):
            for pictures, chosen in self.calibration_batches(images):
                self.code(coder, analyse(pictures, chosen), tf.shape(pictures)[:3], **chosen)

        with exact.calibrating(self.submodules):
            show_all(TableRate(self.bank), self.refine_analysis)
        # Rounded latents are not quite the Gaussians of their noisy selves.
        counter = SymbolCount(self.bank)
        # A graph takes a half of the time that choosing symbols takes without.
        show_all(counter, tf.function(self.analyse_for_encoding, autograph=False, reduce_retracing=True))
        self._set_bank(self.bank.fitted(counter.counts))
        self.weights_id = weights.fingerprint(self.tensors())

    def calibration_batches(self, images: np.ndarray) -> Iterator[tuple[tf.Tensor, dict[str, tf.Tensor]]]:
        """Pictures [N, H, W, 3] in padded batches, float32, with controls from the lowest to the highest quality."""
        controls = self.rate_control.for_calibration(np.shape(images)[:3])
        order = np.random.default_rng(0).permutation(len(images))  # each batch sees pictures of all kinds and qualities
        for batch in np.array_split(order, -(-len(images) // CALIBRATION_BATCH)):
            pictures = self.pad(tf.cast(np.asarray(images)[batch], tf.float32))
            yield pictures, self.pad_controls({name: tf.constant(value[batch]) for name, value in controls.items()})

    def _set_bank(self, bank: tables.CdfBank) -> None:
        self.bank = bank
        self._coder = None
        self._refiner = None
        self._traced = {}
        self.rdoq_graphs = Graphs(self)

    def tensors(self) -> dict[str, np.ndarray]:
        """All that a weights file holds, by name: float16 weights, integer networks, tables (`bank/...`)."""
        result = {}
        for name, variable in self.named_variables().items():
            value = variable.numpy()
            # Multipliers and steps of the integer form are exact float32 numbers; trained weights are float16.
            result[name] = value.astype(np.float16) if variable.trainable else value
        if self.bank is not None:
            result |= {f"bank/{name}": value for name, value in self.bank.tensors().items()}
        return result

    def save(self, path, metadata: dict[str, str] | None = None) -> None:
        """Writes a weights file that `load` reads; `calibrate` first.

        Args:
          path: ends in .safetensors by custom.
          metadata: strings that go into its header besides model, configuration and λ.

        Raises:
          ValueError: no tables yet; or these are not the tensors that `weights_id` names, for training went on since
            `calibrate`, or `load` left out what coding does not need.
        """
        if self.bank is None:
            raise ValueError("calibrate() the codec before saving it: coding needs its tables")
        tensors = self.tensors()
        if weights.fingerprint(tensors) != self.weights_id:
            raise ValueError(
                "calibrate() the codec again before saving it: it has learnt since, or was loaded to code, without the "
                "weights that only training needs (weights.annotate changes the header of a file)"
            )
        header = {
            "model": self.entry.name,
            "config": weights.config_to_json(self.config),
            **self.settings(),
            "weights_id": self.weights_id.hex(),
        }
        weights.write(path, tensors, {**(metadata or {}), **header})

    def assign(self, values: dict[str, np.ndarray], source: str = "the weights") -> None:
        """Gives the variables that exist, and the tables, their values by name.

        Raises:
          UserError: the values are not of this model and configuration.
        """
        bank = {name[5:]: value for name, value in values.items() if name.startswith("bank/")}
        for name, variable in self.named_variables().items():
            value = values.get(name)
            if value is None or value.shape != tuple(variable.shape):
                raise UserError(f"{source}: not of this model and configuration (at {name})")
            variable.assign(value.astype(variable.dtype.as_numpy_dtype))
        if bank:
            self._set_bank(tables.CdfBank.from_tensors(bank))

    # ---- pictures to bytes and back ---------------------------------------------------------------------------------

    @property
    def coder(self) -> rans.RansCoder:
        """The tables in the form the coder looks them up."""
        if self.bank is None:
            raise ValueError("no tables yet: calibrate() the codec or load trained weights")
        if self._coder is None:
            self._coder = rans.RansCoder(self.bank)
        return self._coder

    @property
    def variable_rate(self) -> bool:
        """Whether there are several λ, and so a quality to choose."""
        return len(self.lambdas) > 1

    def pad_controls(self, controls: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Pads those controls that are maps over the pictures, [B, H, W, C], as `pad` does the pictures."""
        return {name: self.pad(value) if len(value.shape) == 4 else value for name, value in controls.items()}

    def compress(self, image: np.ndarray, refine: int = 0, **controls) -> bytes:
        """A picture, uint8 [H, W, 3], as the bytes of a file.

        Args:
          image: the picture.
          refine: so many steps of gradient descent on its latents, for a smaller or better file in much more time; see
            `models/tools/refine.py`. Imports TFC, and reads the weights file again. Two runs may differ in some
            symbols, as threads add gradients up in any order.
          controls: see `RateControl.from_args`.

        Raises:
          UserError: the model has no such control, or it is out of range; or `refine` where the model cannot, or the
            picture is too large for it.
        """
        return self.compress_batch(np.asarray(image)[None], refine=refine, **controls)[0]

    def compress_batch(self, images: np.ndarray, refine: int = 0, **controls) -> list[bytes]:
        """Pictures of one size, uint8 [B, H, W, 3], as files; see `compress`.

        Without `refine` each is the same as if it were compressed alone.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
            raise UserError(f"pictures must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
        batch, height, width, _ = images.shape
        if refine:
            check_refinable(self, refine, batch, height, width)
        unknown = controls.keys() - inspect.signature(self.rate_control.from_args).parameters
        if unknown:
            raise UserError(f"{self.entry.name} has no control named {', '.join(sorted(unknown))}")
        packed, tensors = self.rate_control.from_args((batch, height, width), **controls)
        header = container.Header(self.entry.model_id, self.weights_id, height, width, packed)
        inputs = tf.constant(images), tf.constant(container.header_bytes(header)), tensors
        if self._traced and not refine:
            payloads, marks = self._traced["encode"](*inputs)
        else:
            payloads, marks = self._encode(*inputs, refine)
        return [container.pack(header, p, int(m)) for p, m in zip(payloads.numpy(), marks.numpy())]

    def _encode(
        self, images: tf.Tensor, header: tf.Tensor, controls: dict, refine: int = 0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Pictures uint8 [B, H, W, 3] -> payloads, string [B], and fingerprints, uint32 [B]."""
        stream = rans.RansEncoder(self.coder)
        coder, original = LatentCoder(stream), images
        images, controls = self.pad(images), self.pad_controls(controls)
        if refine:
            analysed = self._refine(images, self.refine_analysis(images, controls), refine, controls)
        else:
            analysed = self.analyse_for_encoding(images, controls)
        latents = self.code(coder, analysed, tf.shape(images)[:3], **controls)
        if self.has_filter:
            self._fit_filter(coder, original, self._picture(latents, None, tf.shape(original)[1:3]), controls)
        return stream.finish(), stream.fingerprint(header)

    def _refine(self, images: tf.Tensor, analysed: tf.Tensor, steps: int, controls: dict) -> tf.Tensor:
        if self._refiner is None:
            self._refiner = Refiner(self, self.training_form())
        # Symbols are chosen behind it: what steps settle on is the nearest integer to where they end.
        return optimise_symbols(self, images, self._refiner(images, analysed, steps, controls), controls)

    def training_form(self) -> Codec:
        """This codec with the variables of training, from its file; one that was trained just now is that itself."""
        return self if self.path is None else load_for_training(self.path)

    def _decode(self, payloads: tf.Tensor, header: tf.Tensor, size: tf.Tensor, controls: dict):
        """Payloads, string [B], of pictures of one size (height, width) -> float32 [B, H, W, 3], fingerprints [B]."""
        latents, coefficients, mark = self._read(payloads, header, size, controls)
        return self._picture(latents, coefficients, size), mark

    def _picture(self, latents, coefficients: tf.Tensor | None, size) -> tf.Tensor:
        """Pictures float32 [B, H, W, 3] of latents and of the coefficients of their filters, if there are any."""
        decoded = self.reconstruct_in_tiles(latents)[:, : size[0], : size[1]]
        return decoded if coefficients is None else restoration.apply(decoded, coefficients)

    def analyse_for_encoding(self, images: tf.Tensor, controls: dict[str, tf.Tensor]):
        """`refine_analysis` of padded pictures [B, H, W, 3], and better symbols (`models/tools/rdoq.py`)."""
        return optimise_symbols(self, images, self.refine_analysis(images, controls), controls)

    def refine_analysis(self, images: tf.Tensor, controls: dict[str, tf.Tensor]):
        """`analyse` of padded pictures [B, H, W, 3], and once more of what the synthesis would leave out of them.

        The transforms are not each other's inverse: without any rounding the synthesis gives another picture, and at
        high rates that is a third of the error. So a share of what is missing (`compensation`) is added to the picture
        and that is analysed again; one step of Landweber's iteration. Only latents that are sent anyhow may change:
        what a trained analysis has left at 0 is not worth its bits.
        """
        analysed = self.analyse_in_tiles(images, controls)
        if not self.compensation:
            return analysed
        images = tf.cast(images, tf.float32)
        missing = images - self.reconstruct_in_tiles(self.unquantised(analysed, **controls))
        again = self.analyse_in_tiles(images + self.compensation * missing, controls)
        return tf.where(tf.abs(analysed * self.symbol_scale(**controls)) > 0.5, again, analysed)

    def analyse_in_tiles(self, images: tf.Tensor, controls: dict[str, tf.Tensor]):
        """`analyse` of padded pictures [B, H, W, 3]; of large ones in tiles, where there are no gradients."""
        maps = {name: value for name, value in controls.items() if len(value.shape) == 4}

        def analyse(part, *parts):
            return self.analyse(tf.cast(part, tf.float32), **{**controls, **dict(zip(maps, parts))})

        inputs = [images, *maps.values()]
        if self.reach is None:
            return analyse(*inputs)
        r = self.reach
        return tiling.in_tiles(analyse, inputs, [1] * len(inputs), r.latents, r.unit, r.analysis, self.tile)

    def reconstruct_in_tiles(self, latents) -> tf.Tensor:
        """`reconstruct`; of large pictures in tiles, where there are no gradients.

        Raises:
          ValueError: the codec was loaded to compress only, and has no synthesis.
        """
        if not self.decodes:
            raise ValueError("loaded without the synthesis, which makes pictures: load(path) has it")
        if self.reach is None:
            return self.reconstruct(latents)

        def reconstruct(*parts):
            return self.reconstruct(tf.nest.pack_sequence_as(latents, parts))

        r = self.reach
        return tiling.in_tiles(reconstruct, tf.nest.flatten(latents), r.decoded, [1], r.unit, r.synthesis, self.tile)

    def _decode_latents(self, payloads: tf.Tensor, header: tf.Tensor, size: tf.Tensor, controls: dict):
        """`_decode` without the synthesis: latents as `transmit` returns them, fingerprints [B]."""
        latents, _, mark = self._read(payloads, header, size, controls)
        return latents, mark

    def _read(self, payloads: tf.Tensor, header: tf.Tensor, size: tf.Tensor, controls: dict):
        """All that payloads hold: latents, the coefficients of filters (None where files hold none), fingerprints."""
        stream = rans.RansDecoder(self.coder, payloads)
        latents, coefficients = self._receive(stream, tf.shape(payloads)[0], size, controls)
        stream.finish()
        return latents, coefficients, stream.fingerprint(header)

    def _receive(self, stream: rans.RansDecoder, batch, size, controls: dict):
        """Latents and the coefficients of filters of `batch` pictures of one size."""
        coder = LatentCoder(stream)
        latents = self.transmit(coder, shape=(batch, *self.padded_size(size[0], size[1])), **controls)
        # Behind all groups: who asks for the first has no filter, and its picture is but a preview.
        if not self.has_filter or "groups" in controls:
            return latents, None
        return latents, restoration.code(coder, None, batch, self.gaussians)

    def trace(self) -> None:
        """Makes graphs of compressing and decompressing, for programs that handle many pictures.

        Takes six seconds at the first picture each way, some twenty where symbols are chosen, and then a quarter to two
        thirds less time for every picture of any size.
        Fused kernels round differently: pixels can differ by a level from those without graphs, and so can a symbol or
        a coefficient here and there, where compressing looks at decoded pixels (filters, compensation).
        """
        self.coder  # noqa: B018 - its tables are variables, and functions that make some are traced twice
        images, string, number = (tf.TensorSpec(*spec) for spec in (
            ([None, None, None, 3], tf.uint8), ([], tf.string), ([2], tf.int32)
        ))  # fmt: skip
        encode = [images, string, self.rate_control.encode_specs]
        decode = [tf.TensorSpec([None], tf.string), string, number, self.rate_control.decode_specs]
        self._traced = {
            "encode": tf.function(self._encode, input_signature=encode, autograph=False),
            "decode": tf.function(self._decode, input_signature=decode, autograph=False),
        }

    def compress_to(self, image: np.ndarray, target_bytes: int, **controls) -> bytes:
        """A picture, uint8 [H, W, 3], in the best quality of `rate_control` whose file is not above `target_bytes`.

        controls: what `compress` takes besides the quality.

        Raises:
          UserError: the weights are of one rate, or even the lowest quality is larger.
        """
        qualities = self.rate_control.qualities.tolist()
        if not qualities:
            raise UserError(f"these {self.entry.name} weights are of one rate: they cannot aim at a size")
        files: dict[int, bytes] = {}

        def size_of(position: int) -> int:
            files[position] = self.compress(image, quality=qualities[position], **controls)
            return len(files[position])

        best = largest_within(max(target_bytes, 1), len(qualities), size_of)
        if best < 0:
            raise UserError(f"the smallest file, {len(files[0])} bytes, is above the {target_bytes} asked for")
        return files[best]

    def decompress(self, data: bytes, groups: int | None = None, partial: bool = False) -> np.ndarray:
        """The picture, uint8 [H, W, 3], that is in the bytes of a file.

        Args:
          data: from `compress`.
          groups: decode only so many of the latent's groups, for a quick or progressive preview (ELIC).
          partial: the file may be cut off anywhere behind its header; show what it still holds.

        Raises:
          container.StreamError: not a file of this model and these weights, damaged or cut off. One line.
        """
        header, payload, fingerprint, controls = self._open(data, partial)
        height, width = header.height, header.width
        if groups is not None:
            controls["groups"] = groups
        with _stream_errors():
            if groups is None and not partial:
                decode = self._traced["decode"] if self._traced else self._decode
                size = tf.constant([height, width])
                pictures, mark = decode(tf.constant([payload]), container.header_bytes(header), size, controls)
                _check_symbols(mark, fingerprint)
                return to_uint8(pictures[0])
            stream = rans.RansDecoder(self.coder, tf.constant([payload]), partial=partial)
            latents, coefficients = self._receive(stream, 1, (height, width), controls)
        return to_uint8(self._picture(latents, coefficients, (height, width))[0])

    def latents(self, data: bytes):
        """The latents that are in the bytes of a file, as `transmit` returns them, B = 1: no picture is made.

        Raises:
          container.StreamError: as `decompress` does.
        """
        header, payload, fingerprint, controls = self._open(data)
        size = tf.constant([header.height, header.width])
        with _stream_errors():
            start = container.header_bytes(header)
            latents, mark = self._decode_latents(tf.constant([payload]), start, size, controls)
            _check_symbols(mark, fingerprint)
        return latents

    def _open(self, data: bytes, partial: bool = False) -> tuple[container.Header, bytes, int, dict[str, tf.Tensor]]:
        """Header, payload, fingerprint and controls of a file. StreamError unless it is of this model and weights."""
        header, payload, fingerprint = container.unpack(data, partial=partial)
        self.check_header(header)
        return header, payload, fingerprint, self.rate_control.from_header(header.controls)

    def latent_outputs(self) -> dict[str, Callable[[tf.Tensor], dict[str, tf.Tensor]]]:
        """What can be told of the latents of a batch of files besides the pictures: functions of the latents.

        An exported model has a signature of each name, which takes `bitstream_bytes` as `decompress` does.
        """
        return {}

    def warm_start(self, before: Codec, widen: bool = False) -> Codec:
        """Makes the training variables and gives those that `before` has, too, its values; the others are new.

        widen: variables may have more channels than those of `before`, whose values go to the first.
        """
        self.build_variables(training=True)
        if before.distortion != self.distortion:
            self.set_distortion(before.distortion)
        self.load_matching(before.named_variables(), widen)
        return self

    def load_matching(self, trained: Mapping[str, tf.Variable], widen: bool = False) -> None:
        """Gives the variables that are among these by name their values; widen: as of `warm_start`."""
        for name, variable in self.named_variables().items():
            if name in trained:
                value = trained[name]
                variable.assign(pad_with(value, variable) if widen else value)

    def to_variable_rate(self, lambdas: Sequence[float]) -> Codec:
        """A codec for several λ to train, which does at this one's λ what this one does; UserError if there is none."""
        raise UserError(f"weights of one λ of {self.entry.name} cannot go on with {len(lambdas)}")

    @classmethod
    def from_checkpoint(cls, path, lmbda: float | Sequence[float] | None = None) -> Codec:
        """`load_for_training` of weights of this model. UserError if they are of another."""
        weights.check_model(path, cls.entry.name)
        return load_for_training(path, lmbda=lmbda)

    def distil_from(self, path) -> None:
        """`fix` of the latents, with symbols as files of a weights file have them: the one that this codec began with.

        UserError if that has not as many λ.
        """
        sender = load(path)
        if len(sender.lambdas) != len(self.lambdas):
            raise UserError(f"{path}: its files are of {len(sender.lambdas)} λ, and --lambda has {len(self.lambdas)}")
        sender.lambdas = self.lambdas
        self.freeze("latents", sender)

    def check_header(self, header: container.Header) -> None:
        """StreamError unless the stream is of this model and of these weights."""
        if header.model_id != self.entry.model_id:
            raise container.StreamError(f"stream of another model (id {header.model_id}), not of {self.entry.name}")
        if header.weights_id != self.weights_id:
            raise container.StreamError(
                f"stream written with other weights ({header.weights_id.hex()}), not these ({self.weights_id.hex()})"
            )


def load(path, synthesis: bool = True) -> Codec:
    """The codec that a weights file describes, ready to compress and decompress. Imports no TFC.

    Args:
      path: of a .safetensors file.
      synthesis: False loads only what compressing needs.

    Raises:
      UserError: no such file, not ours, damaged.
    """
    with without_initialisers():
        codec, values, weights_id = _from_file(path, synthesis=synthesis)
    codec.assign(values, source=str(path))
    codec.weights_id, codec.path = weights_id, str(path)
    return codec


def load_for_training(path, lmbda: float | Sequence[float] | None = None) -> Codec:
    """The codec of a weights file, to go on training from: without tables and integers, which belong to these weights.

    lmbda: λ to train with; that of the file by default. Several where the file has one: see `Codec.to_variable_rate`.

    Raises UserError as `load` does, or if the file has several λ and not as many.
    """
    codec, values, _ = _from_file(path, training=True)
    codec.assign({name: value for name, value in values.items() if not name.startswith("bank/")}, source=str(path))
    if lmbda is None:
        return codec
    lambdas = check_lambdas(lmbda)
    if len(codec.lambdas) == 1 < len(lambdas):
        return codec.to_variable_rate(lambdas)
    if len(lambdas) != len(codec.lambdas):
        raise UserError(f"{path}: has {len(codec.lambdas)} λ, and cannot go on with {len(lambdas)}")
    codec.lambdas = lambdas
    return codec


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


@contextlib.contextmanager
def _stream_errors():
    """What the coder's operations complain of becomes a StreamError."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        raise container.StreamError(rans.describe(error).removeprefix("coder: ")) from error


def _check_symbols(mark: tf.Tensor, fingerprint: int) -> None:
    if int(mark.numpy()[0]) != fingerprint:
        raise container.StreamError("damaged stream: the decoded symbols are not those that were coded")


def validation_draws(images: tf.Tensor, count: int) -> tf.Tensor:
    """For validation a number below `count` for each of the images [B, H, W, 3] in 0..255: int32 [B].

    Told by its pixels, so that a picture has the same one each time, in batches of any size and on any device.
    """
    return tf.reduce_sum(tf.cast(images, tf.int32), [1, 2, 3]) % count


def to_uint8(image: tf.Tensor) -> np.ndarray:
    """Rounds and clips 0..255 to uint8."""
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8).numpy()
