"""The other side of `python -m eval.bench --compressai_python`: CompressAI's ELIC, in an interpreter of its own.

Needs torch, compressai 1.2.8, numpy and pillow; nothing of ours, since TensorFlow 2.14 need not be installed there.
Reads one line "go" per round from stdin, answers with one line of JSON.

    python eval/bench/compressai_peer.py IMAGE THREADS
"""

import importlib.machinery
import json
import sys
import time
import types

import numpy as np


class _StandIn(types.ModuleType):
    """Takes the place of packages that CompressAI imports for data sets and point clouds only."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Anything,), {})


class _Anything:
    """Serves as base class, as function and as decorator with arguments."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, decorated):
        return decorated


def _import_elic():
    """CompressAI's model, with stand-ins for whatever it imports that is not installed."""
    for _ in range(50):
        try:
            from compressai.models.sensetime import Elic2022Official

            return Elic2022Official
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] == "compressai":
                raise
            module = sys.modules[error.name] = _StandIn(error.name)
            module.__spec__ = importlib.machinery.ModuleSpec(error.name, None, is_package=True)
            for name in [name for name in sys.modules if name.split(".")[0] == "compressai"]:
                del sys.modules[name]
    raise SystemExit("error: compressai cannot be imported")


def channel_sigmas(channels):
    """As in eval/bench/coding.py: strong energy compaction, 6 down to 0.00004."""
    return np.exp(np.linspace(np.log(6.0), np.log(4e-5), channels)).astype(np.float32)


def main():
    image, threads = sys.argv[1], int(sys.argv[2])
    import torch
    from PIL import Image

    elic = _import_elic()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = elic().eval()
    pixels = np.asarray(Image.open(image).convert("RGB"))
    images = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    _make_latents_typical(model, torch)
    model.update()

    def round_trip():
        with torch.no_grad():
            begin, cpu = time.perf_counter(), time.process_time()
            out = model.compress(images)
            middle = time.perf_counter()
            model.decompress(out["strings"], out["shape"])
            end = time.perf_counter()
        return {
            "compress": middle - begin,
            "decompress": end - middle,
            "cpu": time.process_time() - cpu,
            "bytes": _total_bytes(out["strings"]),
        }

    round_trip()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(round_trip()), flush=True)


def _total_bytes(strings):
    return len(strings) if isinstance(strings, bytes) else sum(map(_total_bytes, strings))


def _make_latents_typical(model, torch):
    """Random weights give latents of zeros; `typical_latents` (eval/bench/coding.py) has what stands in."""
    sigmas = torch.from_numpy(channel_sigmas(sum(model.groups)))
    analysis = model.g_a

    class Noisy(torch.nn.Module):
        def forward(self, x):
            y = analysis(x)
            generator = torch.Generator().manual_seed(1)
            return y * 0 + torch.randn(y.shape, generator=generator) * sigmas[None, :, None, None]

    model.g_a = Noisy()
    first = 0
    for k, channels in enumerate(model.groups):
        last = model.latent_codec["y"].latent_codec[f"y{k}"].entropy_parameters[-1]
        scales = sigmas[first : first + channels]
        last.weight.data *= 1e-3
        last.bias.data = torch.cat([scales, torch.zeros(channels)])
        first += channels


if __name__ == "__main__":
    main()
