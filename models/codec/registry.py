"""Names of the zoo: what a user can ask for, and what a file's model byte means.

No TensorFlow here: the command line knows all models by their cards, and imports a model's module when it works.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping

from models.io.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preset:
    """Facts about a preset, known before its network is made.

    about: a few words. parameters: of the networks for coding, in millions. kmac: thousands of multiply-adds a pixel,
    of analysis, entropy networks and synthesis together. (`parameters` and `kmac_per_pixel` of
    `models/codec/complexity.py` count both; a test compares.)
    """

    about: str
    parameters: float | None = None
    kmac: float | None = None


@dataclasses.dataclass(frozen=True)
class Card:
    """Facts about a model, known before its module is imported.

    name: as in `models/<name>.py`. model_id: the format byte of its files. title: one line. presets: those that `train`
    takes, its default first. weights: the stem of the weights file that coding takes by default. progressive: whether
    `decompress` takes `groups`. searchable: whether `compress` takes an effort. quality: the range of `--quality`,
    where it is not from 1 to the number of λ. bfloat16: whether transforms may be computed in it by default. ladder:
    the stems of weights files of one rate each that `--quality 1`, `2`, … and a target choose from.
    """

    name: str
    model_id: int
    title: str
    presets: Mapping[str, Preset]
    weights: str | None = None
    progressive: bool = False
    searchable: bool = False
    quality: str | None = None
    bfloat16: bool = True
    ladder: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model whose module is imported. codec, config: classes. presets: configurations by name."""

    card: Card
    codec: type
    config: type
    presets: Mapping[str, object]

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def model_id(self) -> int:
        return self.card.model_id


_ZOO = (
    Card(
        "elic",
        1,
        "ELIC: unevenly grouped space-channel contextual adaptive coding (He et al., CVPR 2022)",
        {
            "base": Preset("the paper's network", 30.96, 561),
            "medium": Preset("small with 160 detail channels: best files without a GPU", 9.573, 77.3),
            "small": Preset("a tenth of the paper's work", 5.947, 64),
        },
        weights="medium",
        progressive=True,
        searchable=True,
    ),
    Card(
        "sft",
        2,
        "SFT: variable rate by quality maps (Song, Choi, Han, ICCV 2021)",
        {
            "base": Preset("the paper's network", 27.57, 1225),
            "small": Preset("narrow where each pixel is computed", 6.202, 69.2),
        },
        weights="small",
        searchable=True,
        quality="0..1",
    ),
    Card(
        "cwic",
        3,
        "CWIC: content-weighted compression with an importance map (Li et al., CVPR 2018)",
        {
            "low": Preset("the paper's network for its four lower rates", 8.949, 200.5),
            "high": Preset("the paper's network for its highest rate", 9.497, 208.6),
            "small": Preset("a quarter of the work, with twice the bits", 2.238, 47.52),
            "small-high": Preset("the same with four times the bits, for higher rates", 2.322, 46.55),
        },
        weights="small-q3",
        searchable=True,
        ladder=("small-q1", "small-q2", "small-q3", "small-q4", "small-q5"),
    ),
    Card(
        "sae_spn",
        4,
        "SAE-SPN: CompressNet, generative compression below 0.1 bpp (Raman et al., WACV 2020)",
        {
            "base": Preset("the paper's network", 23.86, 765),
            "small": Preset("a thirtieth of the paper's work, 13 latents instead of 8", 1.061, 23),
        },
        weights="small-sae_spn13",
        bfloat16=False,  # a switch that another rounding predicts moves a pixel
    ),
    Card(
        "elc",
        5,
        "ELC: compression for people and for machines (Sha et al.)",
        {"base": Preset("the paper's network", 26.34, 1050), "small": Preset("one that a CPU can train", 2.927, 118.2)},
        weights="small-imagenet",
    ),
)
#: The cards of all models, whether imported or not, by name. Models outside the zoo join when they are imported.
CARDS: dict[str, Card] = {card.name: card for card in _ZOO}
#: Model id -> name of the zoo's models; part of the bit stream format.
MODEL_IDS = {card.model_id: card.name for card in _ZOO}
#: Ids that models outside the zoo choose from.
OUTSIDE_IDS = range(128, 256)

_ENTRIES: dict[str, Entry] = {}


def register(
    name: str, config: type, presets: Mapping[str, object], model_id: int | None = None, progressive: bool = False
):
    """Class decorator: makes a codec known under `name`.

    Args:
      name: of one of the zoo's models, or any other for a model outside it.
      config: the class of its configurations.
      presets: configurations by name, the default of `train` first.
      model_id: for a model outside the zoo, of `OUTSIDE_IDS`: the byte by which its files are known.
      progressive: for a model outside the zoo, whether its `code` takes `groups`.

    Raises:
      ValueError: the id is not in that range, or taken; or the presets are not those of the zoo's card.
    """

    def decorate(codec: type) -> type:
        if name in MODEL_IDS.values():
            card = CARDS[name]
            if model_id not in (None, card.model_id) or list(presets) != list(card.presets):
                raise ValueError(
                    f"{name}: id, presets or their order are not those of its card in models/codec/registry.py"
                )
        else:
            card = _card_of(name, model_id, codec, presets, progressive)
        codec.entry = Entry(card, codec, config, presets)
        # A file run as a script is registered once as __main__ and once under its own name: the latter stays.
        if name not in _ENTRIES or codec.__module__ != "__main__":
            CARDS[name] = card
            _ENTRIES[name] = codec.entry
        return codec

    return decorate


def _card_of(name: str, model_id: int | None, codec: type, presets: Mapping, progressive: bool) -> Card:
    if model_id not in OUTSIDE_IDS:
        raise ValueError(f"{name}: models outside the zoo choose an id of {OUTSIDE_IDS[0]} to {OUTSIDE_IDS[-1]}")
    for other in CARDS.values():
        if other.model_id == model_id and other.name != name:
            raise ValueError(f"{name}: model id {model_id} is taken by {other.name}")
    about = sys.modules[codec.__module__].__doc__ or name
    return Card(
        name, model_id, about.split("\n")[0], {p: Preset("") for p in presets}, None, progressive, codec.searchable
    )


def card(name: str) -> Card:
    """Returns the card of the model called `name`; UserError if there is no such model."""
    if name not in CARDS:
        raise UserError(f"no model is called {name!r}; there are: {', '.join(CARDS)}")
    return CARDS[name]


def get(name: str) -> Entry:
    """Imports the model called `name`; UserError if there is no such model."""
    card(name)
    if name not in _ENTRIES:
        importlib.import_module(f"models.{name}")
    return _ENTRIES[name]


def name_of(model_id: int) -> str | None:
    """Returns the name of the model whose files have that byte; None if there is none."""
    return next((card.name for card in CARDS.values() if card.model_id == model_id), None)
