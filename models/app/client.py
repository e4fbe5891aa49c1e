"""Compresses and decompresses images on a server: `python -m models.app.client compress img.png --server URL`.

    python -m models.app.client compress img.png --server http://localhost:8501/v1/models/elic
    python -m models.app.client decompress img.png.tfci --server grpc://localhost:8500/elic

For a TensorFlow Serving that has a model of `python models/….py export DIR`; http is its REST interface. Images are
read here, as a model's command line reads them (rotation, colour profiles, any format), and travel as PNG. http needs
no TensorFlow here, and so starts in a fraction of a second.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from models.io import files, images, terminal
from models.io.errors import UserError, one_line
from models.io.files import IMAGE_SUFFIX, STREAM_SUFFIX


class RestServer:
    """The REST interface of TensorFlow Serving.

    Args:
      url: of the model, such as http://localhost:8501/v1/models/elic, perhaps with /versions/2.
      timeout: seconds.
    """

    def __init__(self, url: str, timeout: float):
        self._url, self._timeout = url.rstrip("/"), timeout

    def predict(self, signature: str, data: bytes, **controls: float) -> bytes:
        """Calls the signature `compress_file` or `decompress_file` on a file's bytes. UserError if it refuses."""
        import requests

        name = "bitstream_bytes" if signature == "decompress_file" else "image_bytes"
        instance = {name: {"b64": base64.b64encode(data).decode()}, **controls}
        # A signature with one input takes its values without a name as well as with it, and gives them without.
        body = {"signature_name": signature, "instances": [instance]}
        try:
            answer = requests.post(f"{self._url}:predict", json=body, timeout=self._timeout)
        except requests.RequestException as error:
            raise UserError(f"{self._url}: no answer: {_reason(error)}") from error
        try:
            content = answer.json()
        except ValueError:
            content = {"error": answer.text[:200] or answer.reason}
        if answer.status_code != 200 or "predictions" not in content:
            raise UserError(f"{self._url}: {describe(str(content.get('error', content)))}")
        return base64.b64decode(content["predictions"][0]["b64"])


class GrpcServer:
    """The gRPC interface of TensorFlow Serving. Needs tensorflow-serving-api, and with it TensorFlow.

    Args:
      address: host:port.
      model: its name on the server.
      timeout: seconds.
    """

    def __init__(self, address: str, model: str, timeout: float):
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError as error:
            raise UserError(
                "grpc:// needs tensorflow-serving-api: pip install tensorflow-serving-api==2.14.1"
            ) from error
        # Images are larger than the 4 MB that gRPC allows by default.
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address, unlimited))
        self._address, self._model, self._timeout = address, model, timeout

    def predict(self, signature: str, data: bytes, **controls: float) -> bytes:
        """Calls a signature, see `RestServer.predict`."""
        import grpc
        import numpy as np
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        decompress = signature == "decompress_file"
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self._model, signature
        request.inputs["bitstream_bytes" if decompress else "image_bytes"].CopyFrom(tf.make_tensor_proto([data]))
        for name, value in controls.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(np.array([value], np.float32)))
        try:
            answer = self._stub.Predict(request, self._timeout)
        except grpc.RpcError as error:
            raise UserError(f"{self._address}: {error.code().name}: {describe(error.details())}") from error
        return answer.outputs["image_bytes" if decompress else "bitstream_bytes"].string_val[0]


def connect(url: str, timeout: float) -> RestServer | GrpcServer:
    """The server at http(s)://HOST:PORT/v1/models/NAME or grpc://HOST:PORT/NAME. UserError for other addresses."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and parts.netloc:
        return RestServer(url, timeout)
    if parts.scheme == "grpc" and parts.netloc and parts.path.strip("/"):
        return GrpcServer(parts.netloc, parts.path.strip("/"), timeout)
    raise UserError(f"--server {url}: must be like http://HOST:8501/v1/models/NAME or grpc://HOST:8500/NAME")


def describe(message: str) -> str:
    """One line out of what a server says: of the model's own refusals, only their text."""
    text = " ".join(message.split())
    found = text.rfind("coder: ")
    return text[found + len("coder: ") :].split("]")[0] if found >= 0 else text


def _reason(error: BaseException) -> str:
    """The innermost of an error's causes, shortly."""
    while error.__context__ is not None:
        error = error.__context__
    return one_line(error)[:200]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.app.client", description=__doc__.split("\n")[0])
    parser.add_argument("direction", choices=("compress", "decompress"))
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="Images, or .tfci files; globs work.")
    parser.add_argument(
        "--server", required=True, metavar="URL", help="http://HOST:8501/v1/models/NAME, grpc://HOST:8500/NAME"
    )
    parser.add_argument("--quality", type=float, metavar="Q", help="For models of variable rate.")
    parser.add_argument(
        "-o", "--output", help="A file for one input, a folder for several; by default beside the input."
    )
    parser.add_argument("-f", "--force", action="store_true", help="Replace files that exist.")
    parser.add_argument("--timeout", type=float, default=60, help="Seconds to wait for an answer.")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        return _report(error)
    except KeyboardInterrupt:
        return 130


def _run(args: argparse.Namespace) -> int:
    suffix = STREAM_SUFFIX if args.direction == "compress" else IMAGE_SUFFIX
    inputs = files.find_inputs(args.inputs)
    outputs = files.output_paths(inputs, args.output, suffix)
    server = connect(args.server, args.timeout)
    code = 0
    for source, target in zip(inputs, outputs):
        try:
            files.check_target(target, args.force)
            if args.direction == "compress":
                controls: Mapping[str, float] = {} if args.quality is None else {"quality": args.quality}
                signature = "compress_file" if controls else "serving_default"
                data = server.predict(signature, _png(source), **controls)
                files.atomic_write(target, data, args.force)
            else:
                data = server.predict("decompress_file", files.read_bytes(source))
                _write_image(target, data, args.force)
            line = f"{source} -> {target}: {len(data)} bytes"
            print(line, file=sys.stderr if files.is_device(target) else sys.stdout)
        except (UserError, OSError) as error:
            code = _report(error)
    return code


def _png(source: Path) -> bytes:
    """An image as its viewer shows it, as PNG of little compression: the network is seldom what takes time."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(images.read_image(source)).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _write_image(target, png: bytes, force: bool) -> None:
    if str(target).lower().endswith(".png"):
        files.atomic_write(target, png, force)
        return
    import numpy as np
    from PIL import Image

    images.write_image(target, np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), force)


def _report(error: BaseException) -> int:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(terminal.finish(main()))
