"""A start for the feature transform of ELC: what of the features is linear in the latents.

A transposed 5x5 convolution gives each feature as a linear function of the latents around it; the other layers pass it
on at first. From there training takes fewer steps than from random weights: res/doc/log/elc.md.
"""

from __future__ import annotations

import numpy as np

from transforms.chain import Chain

#: Of the mean variance of the latents, added to each: weights of latents that hardly vary stay small.
RIDGE = 1e-4
#: Crops that are summed at once.
CHUNK = 500
#: Which latents an output of the transposed convolution sees, of even and of odd rows or columns, by their offset.
TAPS = ((-1, 0), (-1, 0, 1))


def regression(latents: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The transposed convolution of stride 2 that predicts features with the least squared error.

    Args:
      latents: [B, H, W, N], H and W at least 3.
      features: [B, 2 H, 2 W, C].

    Returns:
      Its kernel, float32 [5, 5, C, N], and its bias [C].
    """
    n, c = latents.shape[-1], features.shape[-1]
    offsets = [(i, j) for i in TAPS[1] for j in TAPS[1]]
    products, targets = 0.0, 0.0
    for first in range(0, len(latents), CHUNK):
        y, f = (part[first : first + CHUNK].astype(np.float32) for part in (latents, features))
        count, height, width = y.shape[:3]
        inside = [y[:, 1 + i : height - 1 + i, 1 + j : width - 1 + j] for i, j in offsets]
        inside = np.concatenate([*inside, np.ones_like(inside[0][..., :1])], -1).reshape(-1, 9 * n + 1)
        # [B, H, row of two, W, column of two, C], without the border
        f = f.reshape(count, height, 2, width, 2, c)[:, 1:-1, :, 1:-1]
        products = products + (inside.T @ inside).astype(np.float64)
        targets = targets + np.einsum("mk,mprc->kprc", inside, f.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 2, 2, c))
    products += RIDGE * np.trace(products) / len(products) * np.eye(len(products))
    kernel, bias = np.zeros([5, 5, c, n], np.float32), np.zeros([c], np.float32)
    for row in (0, 1):
        for column in (0, 1):
            seen = [k for k, (i, j) in enumerate(offsets) if i in TAPS[row] and j in TAPS[column]]
            chosen = np.concatenate([*(np.arange(k * n, (k + 1) * n) for k in seen), [9 * n]])
            found = np.linalg.solve(products[np.ix_(chosen, chosen)], targets[chosen, row, column])
            for k, weights in zip(seen, found[:-1].reshape(len(seen), n, c)):
                i, j = offsets[k]
                kernel[row - 2 * i + 1, column - 2 * j + 1] = weights.T
            bias += found[-1] / 4
    return kernel, bias


def begin(transform: Chain, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Lets a `transforms.networks.enhance.feature_transform`, which is built, begin as a convolution of `regression`.

    Channels beyond those of the features keep their random start; they have a small say at first. So do features
    beyond the channels that the latents have.
    """
    c = min(len(bias), transform.channels)
    up, *between, last = transform.layers
    up.kernel.assign(np.concatenate([kernel[:, :, :c], up.kernel.numpy()[:, :, c:]], 2))
    up.bias.assign(np.concatenate([bias[:c], up.bias.numpy()[c:]]))
    for layer in between:
        if hasattr(layer, "init_identity"):
            layer.init_identity()
        else:  # the convolution that widens
            value = layer.kernel.numpy()
            value[..., :c] = 0
            value[1, 1, :c, :c] = np.eye(c)
            layer.kernel.assign(value)
    value = 0.1 * last.kernel.numpy()
    value[0, 0, :c] = np.eye(c, len(bias))
    last.kernel.assign(value)
