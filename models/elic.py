"""ELIC: unevenly grouped space-channel contextual adaptive coding.

He, Yang, Peng, Ma, Qin, Wang: "ELIC: Efficient Learned Image Compression with Unevenly Grouped Space-Channel Contextual
Adaptive Coding", CVPR 2022, https://arxiv.org/abs/2203.10886

    images ──► analysis ──► y ──► hyper-analysis ──► z ──► z_hat ──► hyper-synthesis ──► hyper features
                            │                                                                │
                            ▼              for each group k of the channels of y:            ▼
                            y_k ──► anchors     ◄── parameters_k(hyper, channel context_k(y_hat of groups < k), 0)
                                ──► non-anchors ◄── parameters_k(hyper, channel context_k, spatial context_k(anchors))
                                          │
                                          ▼
    images ◄── synthesis ◄────────────── y_hat

Two passes a group, ten in the paper, each parallel over its positions and channels. The first groups are small and
hold most of the energy: decoding only those already shows the image (`groups`, section 3.4 "progressive").

Not in the paper: gains for several λ (`transforms/gain.py`), detail channels (`transforms/networks/detail.py`), a
PCA initialisation, a second analysis before a file is written (`coding.refine_analysis`), RDOQ
(`models/tools/rdoq.py`), and a filter for the image at the end of its file (`models/tools/restoration.py`).
"""

from __future__ import annotations

if __name__ == "__main__":  # before TensorFlow is imported, for which --help does not wait
    from models.app import main

    main("elic")

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from models.codec import Codec
from models.codec.registry import register
from models.codec.training import warm_start
from models.entropy.passes import checkerboard_pair, gaussian_net, hyperprior
from models.io.errors import UserError
from transforms import checkerboard
from transforms.exact import Conv, EntropyNet, LatentInput, concat, spatially
from transforms.gain import GainedInput, GainUnit
from transforms.networks import detail
from transforms.networks import elic as transforms
from transforms.resample import pad_to_multiple
from transforms.starts import linear as linear_start
from transforms.tiling import Reach


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the architecture (paper, section 4.1 and Fig. 3; entropy networks as in CompressAI).

    widths: channels of the transforms at 1/2, 1/4 and 1/8 of the resolution (N in the paper, the same everywhere).
    groups: channels of the latent's groups; their sum is M.
    hyper_channels: channels of the hyper-latent z.
    hyper_widths: hidden channels of the hyper-synthesis.
    hyper_features: channels that the hyper-synthesis gives to the parameter networks.
    context_widths: hidden channels of the channel-context networks.
    parameter_width: least hidden width of the parameter networks, which otherwise narrow on a straight line from their
      input to their output.
    detail: channels of the last group, if that is one of detail channels; 0 in the paper. See
      `transforms.networks.detail`.
    restoration: files hold a filter for their image; not in the paper. See `models/tools/restoration.py`.
    compensation: step size of the second analysis, which analyses x + compensation · (x − S(A(x))) before a file is
      written; 0, as in the paper, analyses once. See `coding.refine_analysis`.
    rdoq: the move penalty of RDOQ in bits; 0, as in the paper, switches RDOQ off. See `models/tools/rdoq.py`.
    """

    widths: tuple[int, int, int] = (192, 192, 192)
    groups: tuple[int, ...] = (16, 16, 32, 64, 192)
    hyper_channels: int = 192
    hyper_widths: tuple[int, int] = (192, 288)
    hyper_features: int = 384
    context_widths: tuple[int, int] = (224, 128)
    parameter_width: int = 384
    detail: int = 0
    restoration: bool = False
    compensation: float = 0.0
    rdoq: float = 0.0

    @property
    def latents(self) -> int:
        """M, the channels of y."""
        return sum(self.groups)

    @property
    def deep(self) -> int:
        """Channels of y that come from the paper's transforms, not from detail channels."""
        return self.latents - self.detail

    def with_detail(self, channels: int) -> Config:
        """Returns this configuration with one more group, of so many detail channels."""
        return dataclasses.replace(self, groups=(*self.groups, channels), detail=channels)


_SMALL = Config(
    widths=(48, 64, 96),
    groups=(8, 8, 16, 32, 96),
    hyper_channels=64,
    hyper_widths=(64, 96),
    hyper_features=320,
    context_widths=(64, 48),
    parameter_width=96,
    restoration=True,
    compensation=0.7,
    rdoq=11.5,
)
PRESETS = {"base": Config(), "medium": _SMALL.with_detail(160), "small": _SMALL}
"""`base` is the paper's network, `small` a tenth of the work, `medium` is `small` with detail channels.

Also on the card in `models/codec/registry.py`, in the same order. The weights called `small` that ship are older than
the preset: their configuration has no restoration, compensation or rdoq.
"""


@register("elic", config=Config, presets=PRESETS)
class ELIC(Codec):
    """ELIC on the zoo's contract; see `Codec`."""

    # Latents at 1/16; an even number of columns for the checkerboard. The hyper-latent's factor 4 is padded inside.
    stride = (16, 32)
    reach = Reach(unit=16, analysis=144, synthesis=144, latents=(16,), decoded=(16,))
    searchable = True
    decoder_parts = ("synthesis", "detail_synthesis", "synthesis_exchange")
    encoder_parts = ("analysis", "detail_analysis", "analysis_exchange", "latent_gain", "hyper_analysis", "hyper_gain")

    def __init__(self, config: Config = PRESETS["base"], lmbda: float | Sequence[float] = 0.01):
        super().__init__(config, lmbda)
        c = config
        if len(self.lambdas) > 1:
            log_gain = self._first_log_gains(np.exp(np.mean(np.log(self.lambdas))))
            self.latent_gain = GainUnit(c.latents, log_gain, name="latent_gain")
            self.latent_inverse_gain = GainUnit(c.latents, -log_gain, name="latent_inverse_gain")
            self.hyper_gain = GainUnit(c.hyper_channels, 0 * log_gain, name="hyper_gain")
            self.hyper_inverse_gain = GainUnit(c.hyper_channels, 0 * log_gain, name="hyper_inverse_gain")
        self.analysis = transforms.analysis(c.widths, c.deep)
        self.synthesis = transforms.synthesis(c.widths, c.deep)
        if c.detail:
            self.detail_analysis = detail.analysis(c.detail)
            self.detail_synthesis = detail.synthesis(c.detail)
            self.analysis_exchange = detail.exchange(c.latents, name="analysis_exchange")
            self.synthesis_exchange = detail.exchange(c.latents, name="synthesis_exchange")
            far = self.reach.synthesis + 16  # the exchanges look at the neighbours of a latent
            self.reach = dataclasses.replace(self.reach, analysis=far, synthesis=far)
        self.hyper_analysis = transforms.hyper_analysis(c.latents, c.hyper_channels)
        self.hyper_synthesis = EntropyNet(
            c.hyper_channels,
            [*(Conv(w, 5, up=2) for w in c.hyper_widths), Conv(c.hyper_features, 3)],
            name="hyper_synthesis",
        )
        if len(self.lambdas) > 1:
            self.hyper_input = GainedInput(self.hyper_inverse_gain, name="hyper_input")
        else:
            self.hyper_input = LatentInput(c.hyper_channels, name="hyper_input")
        self.latent_inputs = [LatentInput(g, name=f"latent_input{k}") for k, g in enumerate(c.groups)]
        # The first group has no channels before it.
        self.channel_contexts = [None] + [
            EntropyNet(
                sum(c.groups[:k]),
                [*(Conv(w, 5) for w in c.context_widths), Conv(2 * g, 5)],
                name=f"channel_context{k}",
            )
            for k, g in enumerate(c.groups)
            if k
        ]
        self.spatial_contexts = [
            EntropyNet(g, [Conv(2 * g, masked=True)], name=f"spatial_context{k}") for k, g in enumerate(c.groups)
        ]
        self.parameters = [
            gaussian_net(self._parameter_inputs(k), [Conv(w) for w in self._parameter_widths(k)], f"parameters{k}")
            for k in range(len(c.groups))
        ]

    def _first_log_gains(self, reference: float) -> np.ndarray:
        """Initial log gain of each λ, 0.5 · ln(λ / reference): the best step is proportional to 1/√λ."""
        return 0.5 * np.log(np.array(self.lambdas) / reference)

    def init_pca(self) -> None:
        """See `Codec`."""
        linear_start.begin(self.analysis, self.synthesis, self._first_step())
        if self.config.detail:
            self.build_variables(training=True)
            self._begin_detail(shown=True)

    def _first_step(self) -> float:
        return linear_start.best_step(np.exp(np.mean(np.log(self.lambdas))))

    def _begin_detail(self, shown: bool) -> None:
        """Initialises detail channels with the components that follow those of the deep channels; see `detail.begin`.

        With gains the step size goes into the gains, and the kernels stay orthonormal: an optimizer's steps have a
        fixed size and would be too large for small kernels.
        """
        unit = self._first_step()
        if self.variable_rate:
            fine = np.arange(self.config.latents) >= self.config.deep
            log_gain = np.broadcast_to(-np.log(unit) * fine, self.latent_gain.log_gain.shape)
            self.latent_gain.log_gain.assign_add(log_gain)
            self.latent_inverse_gain.log_gain.assign_sub(log_gain)
            unit = 1.0
        detail.begin(self.detail_analysis, self.detail_synthesis, self.config.deep, unit, shown)
        for chain in (self.analysis_exchange, self.synthesis_exchange):
            chain.layers[0].init_identity()
        # Start at mean 0 and scale 0.4: random predictions would cost many bits, whose gradients would disturb what is
        # trained already.
        last = self.parameters[-1]
        last.kernels[-1].assign(tf.zeros_like(last.kernels[-1]))
        last.biases[-1].assign(np.repeat([0.0, np.log(0.4)], self.config.detail))

    def with_detail(self, channels: int) -> ELIC:
        """Makes a codec to train: this one with so many detail channels added. It behaves the same until it is trained.

        UserError if this one has some, or only one λ.
        """
        if self.config.detail:
            raise UserError(f"these weights have {self.config.detail} detail channels already")
        if not self.variable_rate:
            raise UserError("weights of one λ take no detail channels: train them for several first")
        wide = type(self)(self.config.with_detail(channels), self.lambdas)
        warm_start(wide, self, widen=True)
        # At first the hyper-analysis does not see the new channels.
        unseen = wide.hyper_analysis.layers[0].kernel[:, :, self.config.latents :]
        unseen.assign(tf.zeros_like(unseen))
        wide._begin_detail(shown=False)
        return wide

    def to_variable_rate(self, lambdas):
        """See `Codec`."""
        several = warm_start(type(self)(self.config, lambdas), self)
        log_gains = several._first_log_gains(self.lmbda)[:, None]
        for unit, sign in ((several.latent_gain, 1), (several.latent_inverse_gain, -1)):
            unit.log_gain.assign(np.broadcast_to(sign * log_gains, unit.log_gain.shape))
        return several

    def _parameter_inputs(self, k: int) -> int:
        """Adds up the channels of hyper features, channel context (not for the first group) and spatial context."""
        return self.config.hyper_features + (2 if k else 1) * 2 * self.config.groups[k]

    def _parameter_widths(self, k: int) -> list[int]:
        """Widths of three 1x1 convolutions, on a line from input to output width, not below `parameter_width`."""
        start, end = self._parameter_inputs(k), 2 * self.config.groups[k]
        ramp = [round((start + (end - start) * n / 3) / 16) * 16 for n in (1, 2)]
        return [*(max(self.config.parameter_width, w) for w in ramp), end]

    def prior_channels(self) -> int:
        return self.config.hyper_channels

    def analyse(self, images, **_):  # the same for each quality: `code` applies the gains
        images = self.normalise(images)
        y = self.analysis(images)
        if self.config.detail:
            y = self.analysis_exchange(tf.concat([y, self.detail_analysis(images)], -1))
        return tf.cast(y, tf.float32)

    def code(self, coder, y, shape, quality=None, groups: int | None = None):
        """Walks z and the groups of y in coding order; see `Codec`.

        quality: int32 [B], in steps of 1/32 level from 0 at `--quality 1`, for weights of several λ (see
          transforms/gain.py).
        groups: when decoding, stop after this many groups; the others stay at their predicted means. UserError if there
          are fewer groups.
        """
        count = len(self.config.groups)
        if groups is not None and not 0 <= groups <= count:
            raise UserError(f"groups must be 0 to {count}, not {groups}")
        z = None
        if y is not None:
            if quality is not None:
                y = self.latent_gain(y, quality)
            z = self.hyper_analysis(pad_to_multiple(y, 4))
            if quality is not None:
                z = self.hyper_gain(z, quality)
        size = shape[0], shape[1] // 16, shape[2] // 16
        gained = () if quality is None else (quality,)
        _, hyper = hyperprior(coder, z, size, self.hyper_input, self.hyper_synthesis, *gained)
        halves = spatially(checkerboard.split, hyper)
        # For each group (anchors, non-anchors), both [B, rows, columns / 2, C_k].
        sent = [(None, None)] * count
        if y is not None:
            sent = list(zip(*(tf.split(half, self.config.groups, -1) for half in checkerboard.split(y))))
        decoded, context_inputs = [], []
        for k, latent in enumerate(sent):
            features = [[half] for half in halves]
            if k:
                context = spatially(checkerboard.split, self.channel_contexts[k].run(concat(context_inputs)))
                for half, part in zip(features, context):
                    half.append(part)
            y_hat = self._code_group(coder, k, latent, features, read=groups is None or k < groups)
            decoded.append(y_hat)
            context_inputs.append(self.latent_inputs[k].run(y_hat, coder.exact))
        y_hat = tf.concat(decoded, -1)
        return y_hat if quality is None else self.latent_inverse_gain(y_hat, quality)

    def _code_group(self, coder, k: int, latent, features, read: bool) -> tf.Tensor:
        """Codes the two passes of group k. Returns y_hat [B, rows, columns, C_k]: the predicted means if not `read`."""

        def code(half, parameters):
            return coder.gaussian("y", latent[half], parameters) if read else tf.split(parameters.value, 2, -1)[0]

        def as_input(anchors):
            return self.latent_inputs[k].run(anchors, coder.exact)

        return checkerboard_pair(code, features, self.parameters[k], self.spatial_contexts[k], as_input)

    def symbol_scale(self, quality=None):
        return tf.ones([]) if quality is None else self.latent_gain.gains(quality)[:, None, None]

    def unquantised(self, analysed, quality=None):
        return analysed if quality is None else self.latent_inverse_gain(self.latent_gain(analysed, quality), quality)

    def reconstruct(self, latents: tf.Tensor) -> tf.Tensor:
        return self.denormalise(self.synthesise(latents))

    def synthesise(self, latents: tf.Tensor) -> tf.Tensor:
        """Maps latents to normalised images."""
        if not self.config.detail:
            return self.synthesis(latents)
        deep, fine = tf.split(self.synthesis_exchange(latents), [self.config.deep, self.config.detail], -1)
        return self.synthesis(deep) + self.detail_synthesis(fine)
