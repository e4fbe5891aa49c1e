"""A stand-in for TensorFlow Serving's REST interface, over a loaded SavedModel. For tests of the client only.

It speaks `POST /v1/models/NAME:predict` in the row format: {"signature_name": ..., "instances": [...]}, with
{"b64": ...} for strings of names that end in _bytes, and answers {"predictions": [...]} or {"error": ...} as the
server's documentation has it. Not a server: no batching, no versions, no care.
"""

from __future__ import annotations

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import tensorflow as tf


def serve(model, name: str = "elic") -> ThreadingHTTPServer:
    """A server on a free port of this machine, not running yet."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != f"/v1/models/{name}:predict":
                return self._answer(404, {"error": f"Malformed request: POST {self.path}"})
            signature = body.get("signature_name", "serving_default")
            if signature not in model.signatures:
                return self._answer(400, {"error": f'Serving signature name: "{signature}" not found'})
            try:
                return self._answer(200, {"predictions": predict(model.signatures[signature], body["instances"])})
            except (tf.errors.InvalidArgumentError, ValueError) as error:
                return self._answer(400, {"error": str(error)})

        def _answer(self, code: int, content: dict) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def predict(function, instances: list) -> list:
    """Row format in, row format out."""
    specs = function.structured_input_signature[1]
    if any(set(row) != set(specs) for row in instances):
        raise ValueError(f"Failed to process element: inputs must be {sorted(specs)}")
    columns = {name: [decoded(row[name]) for row in instances] for name in specs}
    inputs = {name: tf.constant(column, specs[name].dtype) for name, column in columns.items()}
    outputs = {name: encoded(name, value.numpy()) for name, value in function(**inputs).items()}
    rows = [dict(zip(outputs, values)) for values in zip(*outputs.values())]
    return [row[next(iter(row))] for row in rows] if len(outputs) == 1 else rows


def decoded(value):
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value


def encoded(name: str, value: np.ndarray) -> list:
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(item).decode()} for item in value]
    return value.tolist()
