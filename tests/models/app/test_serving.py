"""SavedModels: what stock TensorFlow makes of them, in Python, in C++, and behind the client."""

import concurrent.futures
import importlib.util
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models.app import client, serving
from models.app.cli import main
from models.codec import load
from models.entropy import container
from models.io.errors import UserError
from models.io.images import encode_image

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def exported(tiny_weights, tmp_path_factory):
    """The folder of the tiny model's SavedModel, as the command line writes it."""
    base = tmp_path_factory.mktemp("served") / "elic"
    with pytest.raises(SystemExit) as stopped:
        main("elic", ["export", str(base), "--version", "3", "--weights", str(tiny_weights), "--max_megapixels", "0.3"])
    assert stopped.value.code == 0
    assert os.listdir(base) == ["3"]
    return base / "3"


@pytest.fixture(scope="module")
def served(exported):
    return tf.saved_model.load(str(exported))


@pytest.fixture(scope="module")
def call(served):
    """Runs a signature on numpy arrays: numpy arrays."""

    def call(signature, **inputs):
        function = served.signatures[signature]
        specs = function.structured_input_signature[1]
        tensors = {name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in function(**tensors).items()}

    return call


def close(a, b) -> bool:
    """Pixels of two compilations of a synthesis differ by a level at most."""
    return np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_the_bytes_are_those_of_the_command_line(call, tiny, crop):
    images = np.stack([crop(50, 70, top, left) for top, left in ((0, 0), (80, 100), (200, 300), (330, 440))])
    streams = call("compress", image=images)["bitstream_bytes"]
    assert streams.tolist() == [tiny.compress(image) for image in images]  # a batch of four, and four singles
    decoded = call("decompress", bitstream_bytes=streams)["image"]
    assert decoded.shape == images.shape and decoded.dtype == np.uint8
    assert all(close(a, tiny.decompress(s)) for a, s in zip(decoded, streams))


def test_files_of_different_sizes(call, tiny, crop):
    images = [crop(33, 65), crop(16, 8), crop(1, 1)]
    streams = call("compress_file", image_bytes=[encode_image(image) for image in images])["bitstream_bytes"]
    assert streams.tolist() == [tiny.compress(image) for image in images]
    files = call("decompress_file", bitstream_bytes=streams)["image_bytes"]
    for file, stream in zip(files, streams):
        assert close(tf.io.decode_png(file).numpy(), tiny.decompress(stream))
    default = call("serving_default", image_bytes=[encode_image(images[0])])["bitstream_bytes"]
    assert default[0] == streams[0]


def damaged(stream):
    """(stream, what is said of it)."""
    cut = len(container.header_bytes(container.unpack(stream)[0]))
    yield b"", "not a stream of this zoo"
    yield b"GIF89a" + stream, "not a stream of this zoo"
    yield b"LZ\2" + stream[3:], "another format version"
    yield b"LZ\1\7" + stream[4:], "another model"
    yield stream[:4] + b"abcd" + stream[8:], "other weights"
    yield stream[:8] + b"\xff" * 5 + stream[9:], "malformed"
    yield stream[:8] + b"\x80\x00" + stream[9:], "malformed"
    yield stream[:8] + b"\x00" + stream[9:], "size"
    yield stream[:8] + b"\xff\xff\x7f" + stream[9:], "1 to 300000 pixels are served at once"
    yield stream[:9], "truncated"
    yield stream[:cut], "truncated"
    yield stream[: cut + 2], "truncated"
    yield stream[:-1], "truncated"
    yield stream[:-2], "checksum"
    yield stream + b"ab", "checksum"
    middle = (cut + len(stream)) // 2
    yield stream[:middle] + bytes([stream[middle] ^ 1]) + stream[middle + 1 :], "checksum"
    yield stream[:-4] + b"abcd", "not those that were coded"


def test_damage_is_an_invalid_argument_that_says_what(call, tiny, crop):
    image = crop(40, 60)
    stream = tiny.compress(image)
    call("decompress", bitstream_bytes=[stream])
    begin = time.perf_counter()
    count = 0
    for bad, says in damaged(stream):
        for streams in ([bad], [bad, bad]):
            with pytest.raises(tf.errors.InvalidArgumentError, match=says):
                call("decompress", bitstream_bytes=streams)
            count += 1
    assert count == 34
    # None of them made it allocate or decode for long.
    assert time.perf_counter() - begin < 30
    assert close(call("decompress", bitstream_bytes=[stream])["image"][0], tiny.decompress(stream))


def test_pictures_that_are_none_or_too_large_are_refused(call, tiny, crop):
    for data in (b"not a picture", b"", b"GIF89a\1\0\1\0", b"BM" + bytes(60)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="neither PNG nor JPEG"):
            call("compress_file", image_bytes=[data])
    for shape in ((1, 600, 501, 3), (1, 0, 5, 3)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="1 to 300000 pixels are served at once"):
            call("compress", image=np.zeros(shape, np.uint8))
    streams = [tiny.compress(crop(20, 30)), tiny.compress(crop(30, 20))]
    with pytest.raises(tf.errors.InvalidArgumentError, match="of one size"):
        call("decompress", bitstream_bytes=streams)


def test_the_limit_is_of_what_a_request_takes(call, tiny, crop):
    """Of a whole batch, padded as the networks see it, whatever the signature."""
    too_much = "1 to 300000 pixels are served at once, of images padded to multiples of 32x16"
    image = crop(100, 200)  # of 112x224 pixels when padded, 25,088: of 11 there are 275,968
    stream = tiny.compress(image)
    assert call("compress", image=np.stack([image] * 11))["bitstream_bytes"].tolist() == [stream] * 11
    assert call("decompress", bitstream_bytes=[stream] * 11)["image"].shape == (11, 100, 200, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match=too_much):
        call("compress", image=np.stack([image] * 12))
    with pytest.raises(tf.errors.InvalidArgumentError, match=too_much):
        call("decompress", bitstream_bytes=[stream] * 12)
    # One by one they are no more than one.
    files = call("decompress_file", bitstream_bytes=[stream] * 12)["image_bytes"]
    assert call("compress_file", image_bytes=[encode_image(image)] * 12)["bitstream_bytes"].tolist() == [stream] * 12
    assert len(files) == 12
    # 20,000 pixels, and 320,000 for the networks.
    line = np.zeros((1, 20000, 3), np.uint8)
    stream = tiny.compress(line)
    for signature, inputs in (
        ("compress", {"image": line[None]}),
        ("compress_file", {"image_bytes": [encode_image(line)]}),
        ("decompress", {"bitstream_bytes": [stream]}),
        ("decompress_file", {"bitstream_bytes": [stream]}),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=too_much):
            call(signature, **inputs)


def test_one_long_stream_does_not_make_the_others_as_long(call, tiny, crop):
    stream = tiny.compress(crop(10, 20))
    padding = bytes(20_000)
    with pytest.raises(tf.errors.InvalidArgumentError, match="checksum"):
        call("decompress", bitstream_bytes=[stream, stream + padding])
    with pytest.raises(tf.errors.InvalidArgumentError, match="longer than any"):
        call("decompress", bitstream_bytes=[stream] * 99 + [stream + padding])


def claiming(width, height):
    """A PNG and JPEGs of so many pixels as far as their headers say, and with no pixels behind these."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    yield serving.PNG + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + bytes(20)
    for marker in (0xC0, 0xC2):  # sequential, progressive
        components = b"".join(bytes([n, 0x11, 0]) for n in (1, 2, 3))
        frame = struct.pack(">BBHBHHB", 0xFF, marker, 17, 8, height, width, 3) + components
        scan = b"\xff\xda\0\x0c\3" + bytes([1, 0, 2, 0, 3, 0, 0, 63, 0])
        yield serving.JPEG[:2] + frame + scan + b"\xff\xd9"


def test_a_picture_is_refused_for_its_header_before_it_is_decoded(call):
    for data in claiming(12000, 10000):
        with pytest.raises(tf.errors.InvalidArgumentError, match="1 to 300000 pixels are served"):
            call("compress_file", image_bytes=[data])
    # Those of a size that is served go to the decoders, which complain.
    for data in claiming(60, 50):
        with pytest.raises(tf.errors.InvalidArgumentError, match="(?i)png|jpeg|crop"):
            call("compress_file", image_bytes=[data])


def test_jpegs_of_all_kinds(call, tiny, photograph):
    """Width and height are not taken for each other, in whichever way the file says them."""
    from PIL import Image

    for progressive in (False, True):
        for mode in ("RGB", "L"):
            buffer = io.BytesIO()
            Image.fromarray(photograph[:40, :90]).convert(mode).save(buffer, "jpeg", progressive=progressive)
            (stream,) = call("compress_file", image_bytes=[buffer.getvalue()])["bitstream_bytes"]
            assert tiny.decompress(stream).shape == (40, 90, 3)


def test_requests_without_pictures(call):
    empty = np.zeros(0, object)
    for signature, inputs in (
        ("compress", {"image": np.zeros((0, 20, 30, 3), np.uint8)}),
        ("compress_file", {"image_bytes": empty}),
        ("serving_default", {"image_bytes": empty}),
        ("decompress", {"bitstream_bytes": empty}),
        ("decompress_file", {"bitstream_bytes": empty}),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="a request without images"):
            call(signature, **inputs)


def test_as_many_qualities_as_pictures(golden_weights, crop):
    functions = serving.signatures(load(golden_weights("sft")))
    images = tf.constant(np.stack([crop(20, 30)] * 2))
    files = tf.constant([encode_image(crop(20, 30))] * 2)
    for count in (0, 1, 3):
        quality_map = tf.fill([count, 1, 1, 1], 0.5)
        for signature, pictures in (("compress", images), ("compress_file", files)):
            with pytest.raises(tf.errors.InvalidArgumentError, match="of equally many images"):
                functions[signature](pictures, quality_map)


def test_concurrent_requests(call, tiny, crop):
    images = [crop(24 + 8 * n, 48, top=10 * n) for n in range(8)]
    expected = [tiny.compress(image) for image in images]

    def work(n):
        for _ in range(3):
            stream = call("compress", image=images[n][None])["bitstream_bytes"][0]
            picture = call("decompress", bitstream_bytes=[stream])["image"][0]
            if stream != expected[n] or not close(picture, tiny.decompress(expected[n])):
                return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_model_card_and_warmup(exported, tiny):
    from tensorflow_serving.apis import prediction_log_pb2

    card = json.loads((exported / "assets" / serving.MODEL_CARD).read_text())
    assert card["model"] == "elic" and card["weights_id"] == tiny.weights_id.hex() and "ELIC" in card["about"]
    records = tf.data.TFRecordDataset(str(exported / "assets.extra" / serving.WARMUP)).as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(r).predict_log.request for r in records]
    loaded = tf.saved_model.load(str(exported))
    assert {r.model_spec.signature_name for r in requests} == set(loaded.signatures)
    for request in requests:
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        assert loaded.signatures[request.model_spec.signature_name](**inputs)


STOCK = """
import sys, numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
image = np.load(sys.argv[2])
stream = model.signatures["compress"](image=tf.constant(image[None]))["bitstream_bytes"]
open(sys.argv[3], "wb").write(stream.numpy()[0])
np.save(sys.argv[4], model.signatures["decompress"](bitstream_bytes=stream)["image"].numpy()[0])
foreign = [m for m in sys.modules if m.split(".")[0] in ("models", "transforms", "tensorflow_compression")]
assert not foreign, foreign
"""


def test_stock_tensorflow_runs_it(exported, tiny, crop, tmp_path):
    """A fresh interpreter that imports TensorFlow and nothing else knows all its ops."""
    image = crop(40, 50)
    np.save(tmp_path / "image.npy", image)
    files = [str(tmp_path / name) for name in ("image.npy", "stream", "decoded.npy")]
    subprocess.run([sys.executable, "-c", STOCK, str(exported), *files], check=True, cwd=tmp_path)
    stream = (tmp_path / "stream").read_bytes()
    assert stream == tiny.compress(image)
    assert close(np.load(tmp_path / "decoded.npy"), tiny.decompress(stream))


def test_the_c_api_runs_it(exported, served, tiny, crop, tmp_path):
    """As TensorFlow Serving does: a C++ program, linked to the libraries in TensorFlow's wheel."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler")
    home = Path(importlib.util.find_spec("tensorflow").origin).parent
    libraries = [str(home / "libtensorflow_cc.so.2"), str(home / "libtensorflow_framework.so.2")]
    program = tmp_path / "serve"
    flags = ["-std=c++17", f"-I{home / 'include'}", *libraries, f"-Wl,-rpath,{home}"]
    subprocess.run([compiler, str(HERE / "serve.cc"), "-o", str(program), *flags], check=True)

    from tensorflow.python.saved_model import loader_impl

    signatures = loader_impl.parse_saved_model(str(exported)).meta_graphs[0].signature_def
    names = []
    for signature, given, wanted in (
        ("compress", "image", "bitstream_bytes"),
        ("decompress", "bitstream_bytes", "image"),
    ):
        names += [signatures[signature].inputs[given].name, signatures[signature].outputs[wanted].name]
    image = crop(40, 50)
    image.tofile(tmp_path / "pixels")
    paths = [str(tmp_path / name) for name in ("pixels", "stream", "decoded")]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [str(program), str(exported), "40", "50", *paths, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "checksum" in done.stdout
    stream = (tmp_path / "stream").read_bytes()
    assert stream == tiny.compress(image)
    decoded = np.fromfile(tmp_path / "decoded", np.uint8).reshape(image.shape)
    assert close(decoded, tiny.decompress(stream))


def test_an_export_replaces_nothing_and_leaves_nothing_behind(
    exported, tiny_weights, tiny, tmp_path, capsys, monkeypatch
):
    before = sorted(exported.rglob("*"))
    for arguments, says in (
        ((str(exported.parent), "--version", "3"), "exists: name another --version"),
        ((str(tmp_path), "--version", "0"), "--version 0"),
        ((str(tmp_path), "--max_megapixels", "0"), "--max_megapixels 0"),
        ((str(tiny_weights), "--version", "1"), "cannot be written"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main("elic", ["export", *arguments, "--weights", str(tiny_weights)])
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert sorted(exported.rglob("*")) == before

    monkeypatch.setattr(serving, "signatures", lambda *_: {"serving_default": tf.function(lambda: tf.constant(1), [])})
    for error in (
        OSError(28, "No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "variables.data;\nNo space left on device"),
    ):

        def full(*_, error=error):
            raise error

        monkeypatch.setattr(serving, "write_warmup", full)
        with pytest.raises(UserError, match="full/1: cannot be written: .*(?i:no space left)") as raised:
            serving.export(tiny, tmp_path / "full")
        assert "\n" not in str(raised.value)
        assert os.listdir(tmp_path / "full") == []


# --- the client ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rest_url(served):
    """A stand-in for TensorFlow Serving's REST interface."""
    spec = importlib.util.spec_from_file_location("rest_standin", HERE / "rest_standin.py")
    standin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(standin)
    server = standin.serve(served)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/models/elic"
    server.shutdown()


@pytest.fixture(scope="module")
def grpc_url(served):
    """The same over gRPC, with the real messages."""
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
            try:
                outputs = served.signatures[request.model_spec.signature_name](**inputs)
            except tf.errors.InvalidArgumentError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
            answer = predict_pb2.PredictResponse()
            for name, value in outputs.items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
            return answer

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}/elic"
    server.stop(None)


@pytest.mark.parametrize("interface", ["rest_url", "grpc_url"])
def test_client_there_and_back(interface, request, tiny, crop, tmp_path, capsys):
    url = request.getfixturevalue(interface)
    pictures = [tmp_path / name for name in ("a.png", "b.png")]
    for path, image in zip(pictures, (crop(30, 44), crop(21, 16))):
        path.write_bytes(encode_image(image))
    assert client.main(["compress", *map(str, pictures), "--server", url]) == 0
    streams = [Path(f"{path}.tfci") for path in pictures]
    assert [s.read_bytes() for s in streams] == [tiny.compress(crop(30, 44)), tiny.compress(crop(21, 16))]
    assert client.main(["decompress", str(streams[1]), "--server", url, "-o", str(tmp_path / "b.webp")]) == 0
    assert client.main(["decompress", str(streams[0]), "--server", url]) == 0
    decoded = tf.io.decode_png(Path(f"{streams[0]}.png").read_bytes()).numpy()
    assert close(decoded, tiny.decompress(streams[0].read_bytes()))
    assert (tmp_path / "b.webp").read_bytes()[8:12] == b"WEBP"
    assert capsys.readouterr().out.count(" bytes") == 4
    # What is wrong is one line, and the other inputs are still done.
    streams[0].write_bytes(streams[0].read_bytes()[:-2])
    before = streams[1].stat().st_mtime_ns
    assert client.main(["decompress", *map(str, streams), "--server", url, "-o", str(tmp_path / "out")]) == 1
    assert client.main(["compress", str(pictures[1]), "--server", url]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and errors[0].endswith("truncated or damaged stream (checksum)") and "--force" in errors[1]
    assert os.listdir(tmp_path / "out") == ["b.png.tfci.png"] and streams[1].stat().st_mtime_ns == before


def test_client_errors(rest_url, crop, tmp_path, capsys):
    picture = tmp_path / "a.png"
    picture.write_bytes(encode_image(crop(8, 8)))
    (tmp_path / "text.png").write_text("no picture")
    for arguments, says in (
        ((picture, "--server", "localhost:8501"), "must be like http://HOST"),
        ((picture, "--server", "http://127.0.0.1:9/v1/models/elic"), "no answer"),
        ((picture, "--server", rest_url.replace("elic", "sft")), "Malformed request"),
        ((picture, "--server", rest_url, "--quality", "3"), "inputs must be ['image_bytes']"),
        ((tmp_path / "text.png", "--server", rest_url), "text.png"),
        ((tmp_path / "none.png", "--server", rest_url), "none.png"),
    ):
        assert client.main(["compress", *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["a.png", "text.png"]


def test_client_stops_when_told_to(rest_url, crop, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "a.png"
    picture.write_bytes(encode_image(crop(8, 8)))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(client.RestServer, "predict", interrupted)
    assert client.main(["compress", str(picture), "--server", rest_url]) == 130
    assert os.listdir(tmp_path) == ["a.png"] and capsys.readouterr() == ("", "")


def test_client_prints_any_name(rest_url, crop, tmp_path):
    picture = os.fsencode(tmp_path) + b"/\xff.png"
    with open(picture, "wb") as file:
        file.write(encode_image(crop(8, 8)))
    command = [sys.executable, "-m", "models.app.client", "compress", picture, "--server", rest_url]
    done = subprocess.run(command, capture_output=True, cwd=HERE.parents[2])
    assert done.returncode == 0, done.stderr
    assert b"\\udcff.png -> " in done.stdout and not done.stderr
    assert os.path.exists(picture + b".tfci")


def test_client_needs_no_tensorflow(rest_url, crop, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(encode_image(crop(8, 8)))
    code = "import sys; from models.app.client import main; code = main(sys.argv[1:])"
    code += "; assert 'tensorflow' not in sys.modules"
    command = [sys.executable, "-c", f"{code}; sys.exit(code)", "compress", str(picture), "--server", rest_url]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert Path(f"{picture}.tfci").exists()
