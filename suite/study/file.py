"""The study file: data sets x numbers of components x seeds, and the methods that all of them are given to.

    title = "Four methods on two tables"
    data = ["nmes1988", "counts.csv"]       # names, or files beside the study file
    components = [2, 3, 4]                  # K
    seeds = [0, 1]
    methods = ["em", "pyro_map", "cavi", "gibbs"]
    starts = 20                             # of the methods that take many
    chains = 4                              # of the samplers
    held_out = 0.1                          # share of rows that second fits are scored on
    budget = 60                             # seconds for each fit
    processes = 2

    [prior]                                 # or prior = "flat"
    alpha = 1.5

    [settings.gibbs]
    n_draws = 500

Only data and components must be given. Each combination of a data set, a K and a seed is a cell of the study.
"""

import hashlib
import math
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from zipmix.comparison.comparison import DEFAULT_METHODS, check_comparison
from zipmix.counts.checks import InputError
from zipmix.files.data import load_data
from zipmix.inference import METHODS
from zipmix.models.parameters import FLAT, Prior, check_prior


class Study(NamedTuple):
    """What a study file asks for; plain values, as they stand in the file."""

    title: str
    data: tuple[str, ...]
    components: tuple[int, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    starts: int
    chains: int
    held_out: float
    budget: float | None  # seconds for each fit
    processes: int
    prior: str | dict[str, Any]  # "flat", or hyperparameters
    settings: dict[str, dict[str, Any]]  # method -> its own settings


class Cell(NamedTuple):
    """One comparison of the study."""

    name: str  # of its folder
    data: str  # as the study file names it
    place: str  # what load_data reads
    digest: str  # of the counts
    n_components: int
    seed: int


class Key(NamedTuple):
    """A key of the study file."""

    allowed: str  # for the message
    usable: Callable[[Any], bool]
    default: Any  # None: the key must be given, or stands for nothing


def read_study(path: str | Path) -> tuple[Study, tuple[Cell, ...]]:
    """A study file and its cells, everything in it checked before anything runs.

    Args:
        path: of the .toml file; data files are looked for beside it.
    Raises:
        InputError: no such file, no TOML, a key or a value that is not allowed, or data that cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no study file {str(path)!r}; give a .toml file.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}.") from None
    for name in content:
        if name not in KEYS:
            raise InputError(f"{path}: there is no key {name!r}; the keys are {', '.join(KEYS)}.")
    values = {name: _value(path, name, content) for name in KEYS}
    study = Study(**(values | {"title": values["title"] or path.stem}))
    try:
        for K in study.components:
            check_prior(as_prior(study.prior), K)
        check_comparison(study.methods, study.settings, study.starts, study.chains, study.held_out, study.budget)
        stray = [name for name in study.settings if name not in study.methods]
        if stray:
            raise InputError(f"settings.{stray[0]} belongs to no method of the study; add it to methods.")
        return study, _cells(study, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def as_prior(values: str | dict[str, Any]) -> Prior:
    """The prior of a study."""
    return FLAT if isinstance(values, str) else Prior(**values)


def _value(path: Path, name: str, content: dict[str, Any]) -> Any:
    key = KEYS[name]
    if name not in content:
        if name in REQUIRED:
            raise InputError(f"{path}: the key {name} is missing; it must be {key.allowed}.")
        return key.default
    value = content[name]
    if not key.usable(value):
        raise InputError(f"{path}: {name} must be {key.allowed}; got {value!r}.")
    return tuple(value) if isinstance(value, list) else value


def _cells(study: Study, folder: Path) -> tuple[Cell, ...]:
    cells: list[Cell] = []
    stems: set[str] = set()
    for name in study.data:
        place = str(folder / name) if Path(name).suffix else name
        X_ND = load_data(place).X_ND
        digest = hashlib.sha256(repr(tuple(X_ND.shape)).encode() + X_ND.numpy().tobytes()).hexdigest()[:16]
        # Folders are named for people, whatever the data are called.
        plain = stem = re.sub(r"\W+", "-", Path(name).stem, flags=re.ASCII).strip("-")[:40] or "data"
        number = 1
        while stem in stems:
            number += 1
            stem = f"{plain}-{number}"
        stems.add(stem)
        cells += [
            Cell(f"{stem}-K{K}-seed{seed}", name, place, digest, K, seed)
            for K in study.components
            for seed in study.seeds
        ]
    return tuple(cells)


def _is_whole(value: Any, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any, usable: Callable[[Any], bool]) -> bool:
    """A list with something in it, and nothing twice."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(usable(entry) for entry in value)
        and len(set(value)) == len(value)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _is_prior(value: Any) -> bool:
    def usable(entry: Any) -> bool:
        return _is_number(entry) or (isinstance(entry, list) and len(entry) > 0 and all(map(_is_number, entry)))

    if isinstance(value, dict):
        return all(name in Prior._fields and usable(entry) for name, entry in value.items())
    return isinstance(value, str) and value == "flat"


def _is_settings(value: Any) -> bool:
    def usable(entry: Any) -> bool:
        return isinstance(entry, (str, bool)) or _is_number(entry)

    return isinstance(value, dict) and all(
        isinstance(own, dict) and all(usable(entry) for entry in own.values()) for own in value.values()
    )


REQUIRED = ("data", "components")

KEYS = {
    "title": Key("a text", _is_text, None),
    "data": Key("a list of data sets, each once", lambda value: _is_list(value, _is_text), None),
    "components": Key(
        "a list of whole numbers >= 1, each once",
        lambda value: _is_list(value, lambda entry: _is_whole(entry, 1)),
        None,
    ),
    "seeds": Key(
        "a list of whole numbers >= 0, each once",
        lambda value: _is_list(value, lambda entry: _is_whole(entry, 0)),
        (0,),
    ),
    "methods": Key(
        f"a list of methods, each once, among {', '.join(METHODS)}",
        lambda value: _is_list(value, lambda entry: isinstance(entry, str) and entry in METHODS),
        DEFAULT_METHODS,
    ),
    "starts": Key("a whole number >= 1", lambda value: _is_whole(value, 1), 50),
    "chains": Key("a whole number >= 1", lambda value: _is_whole(value, 1), 4),
    "held_out": Key("a number from 0 to 0.5", lambda value: _is_number(value) and 0 <= value <= 0.5, 0.1),
    "budget": Key("a number of seconds > 0", lambda value: _is_number(value) and value > 0, None),
    "processes": Key("a whole number >= 1", lambda value: _is_whole(value, 1), os.cpu_count() or 1),
    "prior": Key(
        f'"flat", or a table of numbers named {", ".join(Prior._fields)}; a list of numbers for alpha', _is_prior, {}
    ),
    "settings": Key("a table per method, of numbers, texts and flags: [settings.gibbs]", _is_settings, {}),
}
