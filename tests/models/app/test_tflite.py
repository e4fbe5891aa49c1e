"""TensorFlow Lite: the same files and pictures from its interpreter."""

import os

import numpy as np
import pytest
import tensorflow as tf
from variants import with_config

from models.app import tflite
from models.app.cli import main
from models.codec import load

HEIGHT, WIDTH = 50, 76


def run(path, **inputs):
    """What a converted function gives for named inputs: its only output."""
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    details = {
        detail["name"].removeprefix("serving_default_").partition(":")[0]: detail
        for detail in interpreter.get_input_details()
    }
    assert set(details) == set(inputs)
    for name, value in inputs.items():
        interpreter.set_tensor(details[name]["index"], value)
    interpreter.invoke()
    (output,) = interpreter.get_output_details()
    return interpreter.get_tensor(output["index"])


@pytest.fixture(scope="module")
def exported(tiny_weights, tmp_path_factory):
    """The folder that the command line writes."""
    base = tmp_path_factory.mktemp("lite")
    with pytest.raises(SystemExit) as stopped:
        main("elic", ["export", str(base), "--tflite", f"{WIDTH}x{HEIGHT}", "--weights", str(tiny_weights)])
    assert stopped.value.code == 0 and os.listdir(base) == ["tflite-1"]
    return base / "tflite-1"


def test_there_and_back(exported, tiny, crop):
    assert sorted(os.listdir(exported)) == ["compress.tflite", "decompress.tflite", "model_card.json"]
    image = crop(HEIGHT, WIDTH)
    data = tiny.compress(image)
    (stream,) = run(exported / "compress.tflite", image=image[None])
    assert stream == data
    picture = run(exported / "decompress.tflite", bitstream_bytes=np.array([data]))
    assert picture.shape == (1, HEIGHT, WIDTH, 3) and picture.dtype == np.uint8
    assert np.abs(picture[0].astype(int) - tiny.decompress(data)).max() <= 1


def test_what_is_wrong_is_an_error_of_the_interpreter(exported, tiny, crop):
    data = tiny.compress(crop(HEIGHT, WIDTH))
    other = tiny.compress(crop(HEIGHT, WIDTH + 1))
    for stream in (data[:-3], b"", other):
        with pytest.raises(RuntimeError):
            run(exported / "decompress.tflite", bitstream_bytes=np.array([stream], object))


def test_the_limit_of_servers_is_not_theirs(tiny, crop, monkeypatch):
    """They must take the streams that they write, of any size."""
    monkeypatch.setattr(tflite.serving.signatures, "__defaults__", (1000,))
    made = tflite.functions(tiny, WIDTH, HEIGHT)
    image = crop(HEIGHT, WIDTH)[None]
    picture = made["decompress"](**made["compress"](image))["image"]
    assert picture.shape == image.shape


def test_controls_are_inputs(golden_weights, crop, tmp_path):
    codec = load(golden_weights("sft"))
    folder = tflite.export(codec, tmp_path, WIDTH, HEIGHT, version=2)
    image = crop(HEIGHT, WIDTH)
    quality_map = np.linspace(0, 1, WIDTH, dtype=np.float32)[None, None, :, None].repeat(HEIGHT, 1)
    (stream,) = run(folder / "compress.tflite", image=image[None], quality_map=quality_map)
    assert stream == codec.compress(image, quality_map=quality_map[0])


def test_what_a_sender_looks_at_converts(tiny, crop, tmp_path):
    """A second analysis, and symbols chosen by gradients of the synthesis."""
    choosing = with_config(tiny.path, tmp_path, compensation=0.7, rdoq=1.0)
    path, image = tmp_path / "compress.tflite", crop(HEIGHT, WIDTH)
    path.write_bytes(tflite.convert(tflite.functions(choosing, WIDTH, HEIGHT)["compress"]))
    (stream,) = run(path, image=image[None])
    assert stream == choosing.compress(image) != tiny.compress(image)


def test_errors(tiny_weights, exported, capsys):
    for flags, says in (
        (["--tflite", "76x50"], "tflite-1: exists"),
        (["--tflite", "76"], "invalid WIDTHxHEIGHT value"),
        (["--tflite", "0x50"], "invalid WIDTHxHEIGHT value"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main("elic", ["export", str(exported.parent), "--weights", str(tiny_weights), *flags])
        assert stopped.value.code
        assert says in capsys.readouterr().err
