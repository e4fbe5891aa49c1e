"""Entropy networks as a codec chains them, and a process that runs them in a given setting of TensorFlow.

    python tests/transforms/entropy_path.py STATE.npz RESULT.npz THREADS [xla]

reads inputs and variables, and writes what the path gives in both forms: eagerly, traced, and compiled by XLA; the
images of the batch together, and one by one.
"""

import sys

import numpy as np
import tensorflow as tf

from transforms import checkerboard, exact
from transforms.exact import Conv, EntropyNet, Fixed, LatentInput, Output, concat, spatially

Z, HYPER, GROUP, BATCH = 24, 64, 16, 4


class EntropyPath(tf.Module):
    """Hyper-latent and decoded anchors -> means and table rows of the non-anchors."""

    def __init__(self):
        super().__init__()
        self.z_input = LatentInput(Z)
        self.anchors_input = LatentInput(GROUP)
        self.hyper = EntropyNet(Z, [Conv(48, 5, up=2), Conv(64, 5, up=2), Conv(HYPER, 3)])
        self.context = EntropyNet(GROUP, [Conv(48, 5), Conv(2 * GROUP, 5)])
        self.spatial = EntropyNet(GROUP, [Conv(2 * GROUP, masked=True)])
        self.parameters = EntropyNet(
            HYPER + 4 * GROUP,
            [Conv(96), Conv(64), Conv(2 * GROUP)],
            Output.PARAMETERS,
            output_gain=8.13,
            output_bias=17.9,
        )

    def __call__(self, z, anchors, exact_form):
        hyper = self.hyper.run(self.z_input.run(z, exact_form))
        given = self.anchors_input.run(anchors, exact_form)
        context = self.context.run(spatially(lambda a: checkerboard.merge(a, a), given))
        halves = [spatially(checkerboard.split, x)[1] for x in (hyper, context)]
        result = self.parameters.run(concat([*halves, self.spatial.run(given)]))
        return result.value if isinstance(result, Fixed) else result


def inputs():
    """Latents as they come: small integers and sixteenths."""
    random = np.random.default_rng(5)
    z = np.rint(random.normal(0, 3, [BATCH, 3, 4, Z]))
    anchors = np.rint(random.normal(0, 40, [BATCH, 12, 8, GROUP])) / 16
    return tf.constant(z, tf.float32), tf.constant(anchors, tf.float32)


def calibrated():
    """A path with random weights, in both forms."""
    tf.keras.utils.set_random_seed(2)
    path, (z, anchors) = EntropyPath(), inputs()
    path(z, anchors, exact_form=False)
    for variable in path.trainable_variables:
        if variable.shape.rank == 1:
            variable.assign(tf.random.normal(variable.shape, stddev=0.2))
    with exact.calibrating(path.submodules):
        path(z, anchors, exact_form=True)
    return path


def _main(state_file, result_file, threads, *flags):
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    path, (z, anchors) = EntropyPath(), inputs()
    path(z, anchors, exact_form=False)
    path(z, anchors, exact_form=True)
    state = np.load(state_file)
    for n, variable in enumerate(path.variables):
        variable.assign(state[str(n)])
    results = {}
    for form, exact_form in (("float", False), ("integer", True)):

        def run(z, anchors, exact_form=exact_form):
            return path(z, anchors, exact_form)

        ways = {"eager": run, "traced": tf.function(run)}
        if "xla" in flags:
            ways["xla"] = tf.function(run, jit_compile=True)
        for way, function in ways.items():
            results[f"{form}/{way}/together"] = function(z, anchors).numpy()
            if (form, way) == ("float", "xla"):  # it takes long to compile, and proves nothing more
                continue
            single = [function(z[i : i + 1], anchors[i : i + 1]).numpy() for i in range(BATCH)]
            results[f"{form}/{way}/alone"] = np.concatenate(single)
    np.savez(result_file, **results)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
