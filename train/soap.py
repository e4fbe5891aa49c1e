"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade: "SOAP: Improving and Stabilizing Shampoo using
Adam", ICLR 2025, arXiv 2409.11321. For learned image compression it was measured by Zhang and Zhu, "Leveraging
Second-Order Curvature for Efficient Learned Image Compression", arXiv 2601.20769: rate and distortion pull the same
weight in different directions, and a step that knows how directions go together takes neither back and forth.

A kernel of a convolution has three sides: its taps, its input channels and its output channels. Along each of them the
gradients have a covariance, and in the basis of the eigenvectors of these Adam's one learning rate for each number says
more than it does for each weight.
"""

from __future__ import annotations

import math

import tensorflow as tf

#: Most sides of a variable: a kernel has three, since the rows and columns of its taps count as one.
SIDES = 3


class SOAP(tf.keras.optimizers.Adam):
    """Adam, each variable turned into the eigenbases of the covariances of its gradients.

    Variables of one dimension, and sides of length 1 or above `max_side`, are not turned; where nothing is, this is
    Adam.

    Args:
      learning_rate: as Adam's: steps are as long in any basis.
      beta_1, beta_2, epsilon: Adam's.
      beta_covariance: momentum of the covariances.
      refresh: steps between two renewals of a variable's bases; those of different variables come at different steps.
      max_side: the work of a side grows with the square of its length, and that of a renewal with the third power.
      **kwargs: as of Keras' Adam: clipping, averaging. There is no `amsgrad`.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        epsilon: float = 1e-8,
        beta_covariance: float = 0.95,
        refresh: int = 10,
        max_side: int = 512,
        name: str = "SOAP",
        **kwargs,
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, name=name, **kwargs)
        self.beta_covariance, self.refresh, self.max_side = beta_covariance, refresh, max_side

    def build(self, var_list):
        """See Keras' `Optimizer`. Adam's slots are in the bases of the moment."""
        built = getattr(self, "_built", False)
        super().build(var_list)
        if built:
            return
        # A list for each side, in the order of the variables as all slots of Keras' optimizers are; None: not turned.
        for side in range(SIDES):
            lengths = [dict(self._turned(v)).get(side) for v in var_list]
            for kind, begin in (("covariances", tf.zeros), ("bases", lambda shape: tf.eye(shape[0]))):
                slots = [
                    n and self.add_variable_from_reference(v, f"{kind}{side}", initial_value=begin([n, n]))
                    for v, n in zip(var_list, lengths)
                ]
                setattr(self, f"_{kind}{side}", slots)

    def _sides(self, variable) -> list[int]:
        shape = variable.shape.as_list()
        return [math.prod(shape[:-2]), *shape[-2:]] if len(shape) > SIDES else shape

    def _turned(self, variable) -> list[tuple[int, int]]:
        """(side, its length) of all sides that are turned."""
        sides = self._sides(variable)
        if len(sides) < 2:
            return []
        return [(side, n) for side, n in enumerate(sides) if 1 < n <= self.max_side]

    @tf.autograph.experimental.do_not_convert
    def update_step(self, gradient, variable):
        """See Keras' `Optimizer`."""
        sides, turned = self._sides(variable), [side for side, _ in self._turned(variable)]
        if not turned:
            super().update_step(gradient, variable)
            return
        index = self._index_dict[self._var_key(variable)]
        momentum, velocity = self._momentums[index], self._velocities[index]
        covariances = {side: getattr(self, f"_covariances{side}")[index] for side in turned}
        bases = {side: getattr(self, f"_bases{side}")[index] for side in turned}
        gradient = tf.convert_to_tensor(gradient)  # of one that is sparse, too
        for side in turned:
            own = _covariance(gradient, sides, side)
            covariances[side].assign_add((own - covariances[side]) * (1.0 - self.beta_covariance))
        due = tf.equal((self.iterations + index) % self.refresh, 0) | tf.equal(self.iterations, 0)
        tf.cond(due, lambda: self._renew(sides, covariances, bases, momentum, velocity), lambda: False)
        for side in turned:
            gradient = _turn(gradient, sides, side, bases[side])
        step = tf.cast(self.iterations + 1, variable.dtype)
        momentum.assign_add((gradient - momentum) * (1 - self.beta_1))
        velocity.assign_add((tf.square(gradient) - velocity) * (1 - self.beta_2))
        scale = tf.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
        update = momentum * scale / (tf.sqrt(velocity) + self.epsilon)
        for side in turned:
            update = _turn(update, sides, side, bases[side], back=True)
        variable.assign_sub(tf.cast(self.learning_rate, variable.dtype) * update)

    def _renew(self, sides, covariances, bases, momentum, velocity) -> bool:
        """Makes the bases of a variable those of its covariances, and expresses Adam's slots in them.

        The paper takes a step of orthogonal iteration (QR) towards the eigenvectors, which was no faster. Where
        gradients are next to nothing in float32, as of channels that a ReLU has closed, its columns were no basis after
        a hundred steps of ELIC `medium`, and a kernel moved by 10^5 learning rates.
        """
        m, v = tf.convert_to_tensor(momentum), tf.convert_to_tensor(velocity)
        for side, basis in bases.items():
            old, new = tf.convert_to_tensor(basis), tf.linalg.eigh(covariances[side])[1]
            basis.assign(new)
            # Squares go along with what they are the squares of, as if coordinates had nothing to do with each other.
            # The paper leaves them where they are, though eigenvectors of eigenvalues that are close turn freely.
            change = tf.matmul(old, new, transpose_a=True)
            m = _turn(m, sides, side, change)
            v = _turn(v, sides, side, tf.square(change))
        momentum.assign(m)
        velocity.assign(v)
        return True

    def get_config(self):
        """See Keras' `Optimizer`."""
        own = {name: getattr(self, name) for name in ("beta_covariance", "refresh", "max_side")}
        return {**super().get_config(), **own}


def _around(sides: list[int], side: int) -> tuple[int, int, int]:
    """The numbers of elements before a side, along it, and after it."""
    return math.prod(sides[:side]), sides[side], math.prod(sides[side + 1 :])


def _covariance(x: tf.Tensor, sides: list[int], side: int) -> tf.Tensor:
    """The sum over all other sides of the products of x with itself: [n, n] for a side of length n."""
    before, n, after = _around(sides, side)
    if after == 1:
        x = tf.reshape(x, [before, n])
        return tf.matmul(x, x, transpose_a=True)
    x = tf.reshape(x, [before, n, after])
    return tf.reduce_sum(tf.matmul(x, x, transpose_b=True), 0)


def _turn(x: tf.Tensor, sides: list[int], side: int, basis: tf.Tensor, back: bool = False) -> tf.Tensor:
    """x, a side of which is expressed in a basis, whose vectors are columns; or from there back. The shape stays."""
    before, n, after = _around(sides, side)
    if after == 1:
        turned = tf.matmul(tf.reshape(x, [before, n]), basis, transpose_b=back)
    else:
        inner = [n, after] if before == 1 else [before, n, after]
        turned = tf.matmul(basis, tf.reshape(x, inner), transpose_a=not back)
    return tf.reshape(turned, x.shape)
