"""Every model of the zoo as a SavedModel, run by an interpreter that has TensorFlow and nothing of ours.

`test_serving.py` has the rest, for ELIC.
"""

import subprocess
import sys

import numpy as np
import pytest
from variants import with_config

from models.app import serving

#: Runs the signatures of the SavedModel argv[1] on the inputs in argv[2]; results to argv[3].
STOCK = """
import sys
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
inputs = dict(np.load(sys.argv[2]))
run = model.signatures
found = run["compress"](**{name: tf.constant(value) for name, value in inputs.items()})
stream = found["bitstream_bytes"]
result = {"streams": np.array([list(s) for s in stream.numpy()], object), **run["decompress"](bitstream_bytes=stream)}
if "classify" in run:
    result |= run["classify"](bitstream_bytes=stream)
np.savez(sys.argv[3], **result)
foreign = [name for name in sys.modules if name.partition(".")[0] in ("models", "transforms", "tensorflow_compression")]
assert not foreign, foreign
"""


#: What makes a sender look at what a receiver will see, as shipped weights have it. (Symbols are chosen by floats:
#: one bit of reluctance is so eager that the last digit of a slope changes the file.)
LOOKING = {"compensation": 0.7, "rdoq": 12.0}


@pytest.mark.parametrize(
    "model, changes", [("elic", LOOKING), ("sft", {}), ("sft", LOOKING), ("cwic", {}), ("sae_spn", {}), ("elc", {})]
)
def test_stock_tensorflow_runs_it(model, changes, golden_weights, crop, tmp_path):
    codec = with_config(golden_weights(model), tmp_path, **changes)
    folder = serving.export(codec, tmp_path / model)
    assert (folder / "assets.extra" / serving.WARMUP).stat().st_size > 1000
    images = np.stack([crop(50, 70), crop(50, 70, 200, 300)])
    controls = {}
    if model == "sft":
        ramp = np.linspace(0, 1, 70, dtype=np.float32)[None, None, :, None]
        controls["quality_map"] = np.broadcast_to(ramp, [2, 50, 70, 1])
    np.savez(tmp_path / "inputs.npz", image=images, **controls)
    files = [str(tmp_path / name) for name in ("inputs.npz", "outputs.npz")]
    subprocess.run([sys.executable, "-c", STOCK, str(folder), *files], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "outputs.npz", allow_pickle=True)
    streams = [bytes(s) for s in found["streams"]]
    assert streams == codec.compress_batch(images, **controls)
    for picture, stream in zip(found["image"].astype(int), streams):
        assert np.abs(picture - codec.decompress(stream)).max() <= 1
    assert ("probabilities" in found) == (model == "elc")
    if model == "elc":
        for probabilities, stream in zip(found["probabilities"], streams):
            np.testing.assert_allclose(probabilities, codec.classify(stream), atol=1e-4)
