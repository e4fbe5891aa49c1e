"""Rate and distortion as people want to see them: tables, JSON, plots, and where they stand among other
codecs."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics import bpp as bits_per_pixel
from models.io.errors import UserError
from models.io.files import PathLike, atomic_write

ANCHORS = Path(__file__).resolve().parents[2] / "res" / "eval" / "anchors.json"
KEYS = ("bpp", "psnr", "ms_ssim")
PERCEPTUAL = ("ssimulacra2", "feature_distance")
_OF = {"psnr": "", "ms_ssim": " (MS-SSIM)"}  # as lines have it
AXES = {"psnr": "PSNR, dB (RGB)", "ms_ssim": "MS-SSIM, dB (RGB)"}


@dataclass(frozen=True)
class Measurement:
    """One image, compressed and decompressed.

    Attributes:
      name: of the image.
      num_bytes: of the whole file.
      height, width: in pixels.
      psnr: dB.
      ms_ssim: 0..1, NaN where the image is too small for it.
      ssimulacra2, feature_distance: as of `eval.perceptual`; None where nobody asked for them.
    """

    name: str
    num_bytes: int
    height: int
    width: int
    psnr: float
    ms_ssim: float
    ssimulacra2: float | None = None
    feature_distance: float | None = None

    @property
    def bpp(self) -> float:
        """Bits per pixel, from the real file."""
        return bits_per_pixel(self.num_bytes, self.height, self.width)


@dataclass(frozen=True)
class Curve:
    """A rate-distortion curve: what a codec reaches, averaged over a set of images.

    Attributes:
      name: what to call it.
      bpp: bits per pixel, rising, `[N]`.
      psnr: dB, `[N]`, or empty where unknown.
      ms_ssim: 0..1, `[N]`, or empty where unknown.
      setting: how it was made or where it comes from.
    """

    name: str
    bpp: tuple[float, ...]
    psnr: tuple[float, ...] = ()
    ms_ssim: tuple[float, ...] = ()
    setting: str = ""

    def quality(self, metric: str) -> np.ndarray:
        """The values of `psnr` or `ms_ssim` in dB, `[N]`; MS-SSIM as -10 log10(1 - value), as it is plotted.

        Raises:
          ValueError: the curve does not have that metric.
        """
        values = np.asarray(getattr(self, metric), dtype=float)
        if values.shape != (len(self.bpp),):
            raise ValueError(f"{self.name} has no {metric}")
        return -10 * np.log10(1 - values) if metric == "ms_ssim" else values


# --- tables ------------------------------------------------------------------------------------------------


def mean(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Means over images of `bpp`, `psnr` and `ms_ssim`: each the mean of the per-image values, as usual.

    Also of `ssimulacra2` and `feature_distance`, where they were measured. Images without an MS-SSIM do not count
    in its mean; where none has one it is NaN.

    Raises:
      ValueError: there is no image.
    """
    if not measurements:
        raise ValueError("no images to average")
    known = [m.ms_ssim for m in measurements if not math.isnan(m.ms_ssim)]
    seen = {name: [getattr(m, name) for m in measurements] for name in PERCEPTUAL}
    return {
        "bpp": float(np.mean([m.bpp for m in measurements])),
        "psnr": float(np.mean([m.psnr for m in measurements])),
        "ms_ssim": float(np.mean(known)) if known else math.nan,
        **{name: float(np.mean(values)) for name, values in seen.items() if None not in values},
    }


def curve_of(name: str, points: Sequence[Sequence[Measurement]]) -> Curve:
    """The curve through the means of several lots of measurements, one for each quality."""
    means = sorted((mean(measurements) for measurements in points), key=lambda point: point["bpp"])
    columns = {key: tuple(point[key] for point in means) for key in KEYS}
    if any(map(math.isnan, columns["ms_ssim"])):
        columns["ms_ssim"] = ()
    return Curve(name, **columns)


def table(measurements: Sequence[Measurement]) -> str:
    """A line per image and one for the mean, in aligned columns; no newline at the end."""
    average = mean(measurements)
    label = f"mean of {len(measurements)}"
    width = max(len("image"), len(label), *(len(m.name) for m in measurements))
    head = f"{'image':{width}}  {'size':>11}  {'bytes':>9}  {'bpp':>7}  {'PSNR':>6}  {'MS-SSIM':>7}"
    seen = [name for name in PERCEPTUAL if name in average]
    lines = [head + "".join(f"  {name.replace('_', ' '):>16}" for name in seen)]
    for m in measurements:
        size = f"{m.width}x{m.height}"
        figures = _figures(m.bpp, m.psnr, m.ms_ssim, *(getattr(m, name) for name in seen))
        lines.append(f"{m.name:{width}}  {size:>11}  {m.num_bytes:>9}  {figures}")
    total = sum(m.num_bytes for m in measurements)
    lines.append(f"{label:{width}}  {'':>11}  {total / len(measurements):>9.0f}  {_figures(*average.values())}")
    return "\n".join(lines)


def _figures(bpp: float, psnr: float, ms_ssim: float, *perceptual: float) -> str:
    similarity = "-" if math.isnan(ms_ssim) else f"{ms_ssim:.5f}"
    return f"{bpp:>7.4f}  {psnr:>6.3f}  {similarity:>7}" + "".join(f"  {value:>16.3f}" for value in perceptual)


def write_json(path: PathLike, measurements: Sequence[Measurement], force: bool = False, **facts: Any) -> None:
    """Writes what was measured, for programs to read.

    The file holds `facts` (model, weights, ...), then `mean` with the keys of `mean()` and `pictures` with a
    `Measurement` and its `bpp` each. NaN and infinity, which JSON does not have, become null.

    Raises:
      UserError: as of `models.io.files.atomic_write`.
    """
    images = [{key: v for key, v in {**asdict(m), "bpp": m.bpp}.items() if v is not None} for m in measurements]
    text = json.dumps(finite({**facts, "mean": mean(measurements), "pictures": images}), indent=1)
    atomic_write(path, (text + "\n").encode(), force)


def finite(value: Any) -> Any:
    """Returns a value of lists and mappings with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- other codecs ------------------------------------------------------------------------------------------


def is_kodak(paths: Iterable[Path]) -> bool:
    """Tells whether images are kodim01 to kodim24, by their names: the anchors that ship are of those."""
    return {path.stem for path in paths} == {f"kodim{n:02}" for n in range(1, 25)}


def load_anchors(path: PathLike = ANCHORS) -> dict[str, Curve]:
    """Reads curves to compare with, by name.

    Each codec of the file is an object with either lists `bpp`, `psnr`, `ms_ssim` (any of the last two may
    be missing) or a list `points` of objects with these keys, and `setting` or `source`. The codecs may lie
    under a key `codecs` or at the top.

    Raises:
      UserError: the file cannot be read or is laid out in another way.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        codecs = content.get("codecs", content)
        return {name: _curve(name, codec) for name, codec in codecs.items()}
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a file of rate-distortion curves ({error})") from error


def _curve(name: str, codec: Mapping[str, Any]) -> Curve:
    points = codec.get("points")
    if points is None:
        keys = [key for key in KEYS if key in codec]
        if len({len(codec[key]) for key in keys}) > 1:
            raise ValueError(f"lists of several lengths for {name}")
        points = [dict(zip(keys, values)) for values in zip(*(codec[key] for key in keys))]
    points = sorted(points, key=lambda point: point["bpp"])
    columns = {
        key: tuple(float(point[key]) for point in points) for key in KEYS if all(key in point for point in points)
    }
    return Curve(name, setting=codec.get("setting", codec.get("source", "")), **columns)


def interpolate(curve: Curve, bpp: float, metric: str = "psnr") -> float:
    """The quality that a curve has at a rate.

    Piecewise cubic and monotone (PCHIP) over the logarithm of the rate, as BD-rates have it.

    Args:
      curve: of any number of points; a single one is no curve, and gives NaN.
      bpp: bits per pixel.
      metric: `psnr` or `ms_ssim`.

    Returns:
      dB (see `Curve.quality`), or NaN outside of the rates of the curve: nothing is extrapolated.
    """
    from scipy.interpolate import PchipInterpolator

    rates, first = np.unique(curve.bpp, return_index=True)
    if len(rates) < 2:
        return math.nan
    return float(PchipInterpolator(np.log(rates), curve.quality(metric)[first], extrapolate=False)(math.log(bpp)))


def bd_rate(anchor: Curve, test: Curve, metric: str = "psnr") -> float:
    """Bjontegaard's mean difference in rate at equal quality.

    G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001, with the
    piecewise cubic (PCHIP) interpolation that JVET uses now, over the common range of quality. Agrees with
    the `bjontegaard` package.

    Args:
      anchor, test: points that do not rise in both rate and quality are left out.
      metric: `psnr` or `ms_ssim` (in dB).

    Returns:
      Percent: -10 says that `test` needs a tenth less than `anchor`. NaN where no range of quality is common.
    """
    curves = [_rising(curve.quality(metric), curve.bpp) for curve in (anchor, test)]
    return 100 * math.expm1(_mean_difference([(quality, np.log(rate)) for quality, rate in curves]))


def _rising(quality: np.ndarray, rate: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The points that better all points of lower rate: what is left can be read as rate over quality."""
    kept: list[tuple[float, float]] = []
    for value, bits in zip(quality, rate):
        if not kept or value > kept[-1][0]:
            kept.append((value, bits))
    return np.array([k[0] for k in kept]), np.array([k[1] for k in kept])


def bd_quality(anchor: Curve, test: Curve, metric: str = "psnr") -> float:
    """Computes Bjontegaard's mean difference in quality at equal rate ("BD-PSNR" for `psnr`).

    Args:
      anchor, test, metric: as of `bd_rate`.

    Returns:
      dB: 1 says that `test` is better by a dB. NaN where no range of rates is common.
    """
    curves = [_rising(curve.quality(metric), curve.bpp) for curve in (anchor, test)]
    return _mean_difference([(np.log(rate), quality) for quality, rate in curves])


def _mean_difference(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The mean of the second curve less that of the first, over the common range of x; NaN where there is none."""
    from scipy.interpolate import PchipInterpolator

    if min(len(x) for x, _ in curves) < 2:
        return math.nan
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if low >= high:
        return math.nan
    integrals = [PchipInterpolator(x, y).antiderivative() for x, y in curves]
    first, second = ((integral(high) - integral(low)) / (high - low) for integral in integrals)
    return float(second - first)


def comparable(anchors: Iterable[Curve], metric: str) -> list[Curve]:
    """Those that have the metric; without those of codecs that were tuned for MS-SSIM if it is another."""
    return [a for a in anchors if getattr(a, metric) and (metric == "ms_ssim" or "msssim" not in a.name)]


def standing(mean: Mapping[str, float], anchors: Iterable[Curve], metric: str = "psnr") -> str:
    """One line per codec: its quality at a rate, and how far that of `mean` lies above it.

    Args:
      mean: of `mean()`.
      anchors: that have the metric.
      metric: `psnr` or `ms_ssim`; see `Curve.quality`.
    """
    bpp = mean["bpp"]
    quality = Curve("", (bpp,), **{metric: (mean[metric],)}).quality(metric)[0]
    lines = [f"at {bpp:.4f} bpp: {quality:.2f} dB{_OF[metric]}"]
    for anchor in anchors:
        other = interpolate(anchor, bpp, metric)
        if math.isnan(other):
            rates = f"{anchor.bpp[0]:.3f} to {anchor.bpp[-1]:.3f} bpp"
            lines.append(f"  {anchor.name:24} not at this rate ({rates})")
        else:
            lines.append(f"  {anchor.name:24} {other:.2f} dB  {quality - other:+.2f} dB")
    return "\n".join(lines)


def bd_rates(test: Curve, anchors: Iterable[Curve], metric: str = "psnr") -> str:
    """One line per codec: the BD-rate of `test` against it, negative where `test` is the better one."""
    lines = [f"BD-rate{_OF[metric]} of {test.name}, {test.bpp[0]:.3f} to {test.bpp[-1]:.3f} bpp, against"]
    for anchor in anchors:
        rate = bd_rate(anchor, test, metric)
        lines.append(f"  {anchor.name:24} " + ("no common qualities" if math.isnan(rate) else f"{rate:+.1f} %"))
    return "\n".join(lines)


# --- plots -------------------------------------------------------------------------------------------------


def check_plot(path: PathLike) -> str:
    """Returns the format of a plot by its extension. UserError if it is not PNG, SVG or PDF."""
    extension = Path(path).suffix.lower().lstrip(".")
    if extension not in ("png", "svg", "pdf"):
        raise UserError(f"{path}: a plot is .png, .svg or .pdf")
    return extension


def plot(
    path: PathLike,
    curves: Sequence[Curve],
    anchors: Sequence[Curve] = (),
    metric: str = "psnr",
    title: str = "",
    force: bool = False,
) -> None:
    """Draws rate-distortion curves.

    Args:
      path: PNG, SVG or PDF, by its extension.
      curves: drawn with strong lines and markers; one point is enough.
      anchors: drawn thin, behind. The rates shown are those of `curves`, with some room, where there are
        any.
      metric: `psnr`, or `ms_ssim` (shown in dB); curves without it are left out.
      title: above the plot.
      force: whether an existing file may be replaced.

    Raises:
      UserError: the extension is of no kind of plot, or as of `models.io.files.atomic_write`.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot(xlabel="bits per pixel", ylabel=AXES[metric], title=title)
    for curve in anchors:
        if getattr(curve, metric):
            axes.plot(curve.bpp, curve.quality(metric), linewidth=1, alpha=0.8, label=curve.name)
    for curve in curves:
        if getattr(curve, metric):
            axes.plot(curve.bpp, curve.quality(metric), "o-", linewidth=2.5, label=curve.name)
    rates = [rate for curve in curves for rate in curve.bpp]
    if rates:
        _zoom(axes, max(0.0, min(rates) - 0.15), max(rates) + 0.25)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=check_plot(path), dpi=120)
    atomic_write(path, buffer.getvalue(), force)


def _zoom(axes: Any, left: float, right: float) -> None:
    """Shows the rates from `left` to `right`, and the qualities that occur there."""
    axes.set_xlim(left, right)
    points = np.concatenate([line.get_xydata() for line in axes.lines])
    shown = points[(points[:, 0] >= left) & (points[:, 0] <= right), 1]
    if shown.size:
        axes.set_ylim(shown.min() - 0.5, shown.max() + 0.5)
