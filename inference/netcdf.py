"""NetCDF files: named groups of arrays and a record in JSON in, the same out. Knows no Fit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from zipmix.counts.checks import InputError
from zipmix.counts.whole_file import write_whole

# The attribute of the root that holds the record.
RECORD = "zipmix"


def write_groups(path: Path, record: Mapping[str, Any], groups: Mapping[str, xr.Dataset], *, overwrite: bool) -> Path:
    """Writes groups and their record: all of it or nothing.

    Raises:
        InputError: the file exists, or its folder does not.
    """
    if path.exists() and not overwrite:
        raise InputError(f"path: {path} exists already; choose another name or pass overwrite=True.")
    if not path.parent.is_dir():
        raise InputError(f"path: the folder {path.parent} does not exist; make it first.")

    def write(place: Path) -> None:
        xr.Dataset(attrs={RECORD: json.dumps(record)}).to_netcdf(place, mode="w", engine="h5netcdf")
        for group, dataset in groups.items():
            dataset.to_netcdf(place, mode="a", group=group, engine="h5netcdf")

    write_whole(path, write)
    return path


def read_record(path: Path) -> dict[str, Any]:
    """The record of a file.

    Raises:
        InputError: no such file, or not one that write_groups has written.
    """
    if not path.is_file():
        raise InputError(f"path: there is no file {path}.")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as root:
            record: dict[str, Any] = json.loads(root.attrs[RECORD])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"path: {path} is not a fit that zipmix has saved ({error}).") from None
    return record


def read_groups(path: Path, names: Sequence[str]) -> dict[str, xr.Dataset]:
    """Groups of a file, in memory.

    Raises:
        InputError: a group that is not there or cannot be read.
    """
    try:
        return {name: _read(path, name) for name in names}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"path: {path} is not a fit that zipmix has saved ({error}).") from None


def _read(path: Path, group: str) -> xr.Dataset:
    with xr.open_dataset(path, group=group, engine="h5netcdf") as dataset:
        return dataset.load()
