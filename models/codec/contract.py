"""The contract between a model and the zoo: what a model gives, and the hooks that it may override.

The smallest model gives `stride`, `analyse`, `code`, `reconstruct` and `prior_channels`; `res/doc/add_a_model.md` has
one of some 70 lines. Everything else but `init_pca` has a default here.

*Controls* are what a sender can ask for besides the image, such as a quality: tensors by name, which `rate_control`
makes and which `analyse`, `code` and some hooks take as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from models.codec import training as training_steps
from models.codec.distortion import MSE, distortion
from models.codec.lambdas import at_quality
from models.codec.rate_control import QualityLevels, RateControl
from models.entropy import tables
from models.entropy.coders import EntropyModels
from models.io.errors import UserError
from models.tools import rdoq
from transforms import tiling

if TYPE_CHECKING:
    from models.codec.base import Codec


class Contract(tf.keras.Model):
    """The interface that a paper's file implements; `Codec` builds on it.

    A model gives `stride`, `analyse`, `code`, `reconstruct` and, with a factorised prior, `prior_channels`. Where it
    differs from the usual it overrides one of these hooks:

      reach, decoder_parts, encoder_parts    facts about its networks: tiles, and which parts can be left out or frozen
      make_rate_control                      what a sender can ask for besides the image
      make_entropy_models, table_rows        the probabilities that latents are coded with
      losses, with metric_names              another loss than bpp + λ · distortion
      error_weights, rate_distortion         where λ varies inside an image; both ask `_lambda_of`, the rule λ(quality)
      symbol_scale, unquantised              what RDOQ has to know of `code` (with `searchable`)
      optimise                               another search of the encoder than RDOQ of whole symbols
      settings, from_settings                what a weights file says besides the configuration
      init_pca, to_variable_rate             how training may begin
      latent_outputs                         outputs computed from latents, besides an image
      batch, check_classes                   labels
    """

    stride: tuple[int, int] = (64, 64)
    metric_names: tuple[str, ...] = ("loss", "bpp", "mse", "psnr")
    #: The parts that only decoding needs, by name.
    decoder_parts: tuple[str, ...] = ("synthesis",)
    #: The parts that only encoding needs, for models that freeze parts.
    encoder_parts: tuple[str, ...] = ()
    #: How far `analyse` and `reconstruct` reach, for tiles; None if each pixel depends on the whole image.
    reach: tiling.Reach | None = None
    #: Whether RDOQ is possible (--effort): `analyse` returns one tensor, and the loss is `rate_distortion`. The command
    #: line asks the model's card: one of `models/codec/registry.py` in the zoo, one made from this attribute outside.
    searchable = False
    #: Index of the first Gaussian row of the tables; filters are coded with Gaussian rows.
    gaussian_rows = 0
    entry = None  # set by registry.register

    # ---- what a model gives -----------------------------------------------------------------------------------------

    def analyse(self, images, **controls):
        """Runs the analysis transform: images to latents before quantisation, a float32 tensor or a structure of such.

        images: float32 [B, H, W, 3] in 0..255, padded to the stride. controls: of `rate_control`.
        """
        raise NotImplementedError

    def code(self, coder, analysed, shape, **controls):
        """Walks the latents in coding order and hands each to `coder`, which returns it decoded.

        **One** method for both directions: encoder and decoder cannot drift apart.

        coder: of `models/entropy/coders.py`. analysed: of `analyse`; None when decoding. shape: (B, H, W) of the padded
        images. Returns the decoded latents.
        """
        raise NotImplementedError

    def reconstruct(self, latents):
        """Runs the synthesis: decoded latents to images, float32 [B, H, W, 3] in 0..255."""
        raise NotImplementedError

    # ---- hooks with defaults ----------------------------------------------------------------------------------------

    def prior_channels(self) -> int:
        """Returns the number of channels of the factorised prior."""
        raise NotImplementedError

    def make_rate_control(self) -> RateControl:
        """Makes the control of what a sender can ask for: a quality where there are several λ, else nothing."""
        return QualityLevels(len(self.lambdas)) if self.variable_rate else RateControl()

    def make_entropy_models(self) -> EntropyModels | None:
        """Makes the trained densities; None where networks predict all probabilities."""
        return EntropyModels(self.prior_channels())

    def table_rows(self) -> list[tables.Row]:
        """Makes the rows of the CDF bank, not fitted yet: Gaussians, then one per channel of the factorised prior."""
        pmf, offset = self.entropy_models.prior_pmf()
        return [*tables.gaussian_rows(), *tables.factorized_rows(pmf.T, offset)]

    def losses(self, images, training: bool) -> dict[str, tf.Tensor]:
        """Computes the metrics of `metric_names` for a batch [B, H, W, 3] in 0..255: scalars, "loss" is minimised.

        Where there are several λ the levels are weighted in training (`training.level_weights`), not in validation.
        """
        return training_steps.losses(self, images, training)

    def rate_distortion(self, images, reconstruction, bpp: tf.Tensor, quality: tf.Tensor | None = None) -> tf.Tensor:
        """Returns bpp + λ · distortion, [B], of images [B, H, W, 3] in 0..255; bpp: [B]; controls as of `transmit`."""
        return bpp + self._lambda_of(quality) * distortion(self.distortion, images, reconstruction)

    def error_weights(self, shape: tf.Tensor, **controls) -> tf.Tensor:
        """Returns λ at each pixel, float32 [B, H, W, 1], for a shape (B, H, W, …); controls as of `transmit`."""
        lmbda = tf.reshape(tf.cast(self._lambda_of(**controls), tf.float32), [-1, 1, 1, 1])
        return tf.broadcast_to(lmbda, [shape[0], shape[1], shape[2], 1])

    def _lambda_of(self, quality: tf.Tensor | None = None):
        """Returns λ of a quality, int32 [B] in steps of `rate_control`; the one λ where there is no quality."""
        return self.lambdas[0] if quality is None else at_quality(self.lambdas, quality)

    def symbol_scale(self, **controls) -> tf.Tensor:
        """Returns factors that scale what `analyse` gives to units of the quantiser's step; they broadcast to it."""
        return tf.ones([])

    def optimise(self, images, analysed, controls, iterations: int, progress):
        """Moves latents of `analyse` where rate and distortion gain by it; see `models/tools/rdoq.py`."""
        return rdoq.optimise_symbols(self, images, analysed, controls, iterations, progress)

    def unquantised(self, analysed, **controls):
        """Returns the latents that `code` would return if nothing were rounded."""
        return analysed

    def settings(self) -> dict[str, str]:
        """Returns what a weights file says besides the configuration, as `from_settings` reads it."""
        distortion = {} if self.distortion == MSE else {"distortion": self.distortion}
        return {"lambda": ",".join(map(str, self.lambdas)), **distortion}

    @classmethod
    def from_settings(cls, config, settings: Mapping[str, str]) -> Codec:
        """Makes a codec from a configuration and its `settings`; ValueError or UserError if they are not valid."""
        codec = cls(config, lmbda=[float(value) for value in settings.get("lambda", "").split(",")])
        codec.set_distortion(settings.get("distortion", MSE))
        return codec

    def init_pca(self) -> None:
        """Initialises untrained transforms as a block transform that works; see `transforms/starts/linear.py`."""
        raise NotImplementedError

    def to_variable_rate(self, lambdas: Sequence[float]) -> Codec:
        """Makes a codec to train for several λ that equals this one at this one's λ; UserError if the model cannot."""
        raise UserError(f"weights of one λ of {self.entry.name} cannot go on with {len(lambdas)}")

    def latent_outputs(self) -> dict[str, Callable[[tf.Tensor], dict[str, tf.Tensor]]]:
        """Returns further outputs that are computed from decoded latents, by name: functions of the latents.

        An exported model has a signature of each name, which takes `bitstream_bytes` as `decompress` does.
        """
        return {}

    @staticmethod
    def batch(data):
        """Turns an element of the data set into the argument of `losses`: by default it drops the labels."""
        # Keras hands over an array as (array,), and an element of a data set as it is.
        return tf.keras.utils.unpack_x_y_sample_weight(data)[0]

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raises UserError if the model cannot train on these classes, in this order. By default any will do."""
