"""How an image looks to people and to networks: SSIMULACRA2, a distance and a Fréchet distance of deep features.

All features are those of EfficientNet-Lite2, which no weights of this zoo were trained with (Lite0 may train; a number
from the network that trained says little). The two distances have the form of LPIPS and of FID, but neither their
networks nor, for the first, its calibration on people's answers: so they have other names, and other values.
"""

from __future__ import annotations

import functools
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from models.io.errors import UserError

#: The network that judges, of `res/weights/classifier`.
JUDGE = "efficientnet_lite2"
#: Side of the patches whose features are compared as two crowds, and the smallest image that is looked at, in pixels.
PATCH = 64
#: Of `pyramid`'s scales, the one whose channels describe a patch: 1/16, where Lite2 has 120 channels.
PATCH_SCALE = 3


class Frechet(NamedTuple):
    """A Fréchet distance between two crowds of patches.

    Attributes:
      distance: of all patches. A small crowd looks farther away than it is: compare equal numbers of patches.
      of_half: of every other patch. Where it differs from `distance`, more patches are needed.
      patches: how many.
    """

    distance: float
    of_half: float
    patches: int


class Judge:
    """Measures images one by one, and all that it was shown together.

    Args:
      remember: whether patches are kept for `frechet`.

    Raises:
      UserError: the package ssimulacra2 is not installed.
    """

    def __init__(self, remember: bool = True):
        try:
            import ssimulacra2
        except ImportError as error:
            raise UserError("--perceptual needs the package ssimulacra2: pip install ssimulacra2==0.3.0") from error
        self._ssimulacra2 = ssimulacra2.compute_ssimulacra2
        self._network = _network()
        self._remember = remember
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []

    def measure(self, image: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
        """Compares an image with what came back, uint8 [H, W, 3] both.

        Returns:
          ssimulacra2: 100 for equal images, above 70 hard to tell apart, 10 or below very poor, negative without limit.
          feature_distance: `transforms.losses.deep_features.distance` of the activations at 1/2 to 1/32; 0 for equal
            images.

        Raises:
          ValueError: a side is below 64 pixels.
        """
        if min(image.shape[:2]) < PATCH:
            raise ValueError(f"{image.shape[1]}x{image.shape[0]}: too small for a patch of {PATCH}x{PATCH}")
        import tensorflow as tf

        from transforms.losses import deep_features

        real, made = (self._network.features(tf.cast(x[None], tf.float32)) for x in (image, decoded))
        if self._remember:
            self._seen.append((_patches(real[PATCH_SCALE][0]), _patches(made[PATCH_SCALE][0])))
        return {
            "ssimulacra2": float(self._ssimulacra2(_file(image), _file(decoded))),
            "feature_distance": float(deep_features.between(real, made)[0]),
        }

    def frechet(self) -> Frechet:
        """Compares the patches of all images since the last call with those of what came back."""
        real, decoded = (np.concatenate(patches) for patches in zip(*self._seen))
        self._seen.clear()
        return Frechet(frechet_distance(real, decoded), frechet_distance(real[::2], decoded[::2]), len(real))


@functools.cache
def _network():
    """The network of all judges, loaded once: a study has one judge for each codec."""
    from models.tasks import classifier

    return classifier.load(JUDGE)


def _file(image: np.ndarray) -> io.BytesIO:
    """An image as the package takes it: a file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "BMP")
    file.seek(0)
    return file


def _patches(activations) -> np.ndarray:
    """Activations at 1/16 [H, W, C] -> their means over patches of 64x64 pixels, half over each other: [N, C]."""
    side, step = PATCH // 16, PATCH // 32
    windows = np.lib.stride_tricks.sliding_window_view(activations.numpy(), (side, side), (0, 1))
    return windows[::step, ::step].mean((-2, -1)).reshape(-1, windows.shape[2]).astype(np.float64)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of the normal distributions of two crowds of features [N, C] and [M, C].

    As in Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NIPS 2017 (FID): the squared distance of the
    means, and tr(A + B - 2 (AB)^1/2) of the covariances.
    """
    of_a, of_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(of_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.linalg.eigvalsh(root @ of_b @ root)
    means = np.sum((a.mean(0) - b.mean(0)) ** 2)
    return float(means + np.trace(of_a) + np.trace(of_b) - 2 * np.sum(np.sqrt(np.maximum(cross, 0))))
