"""Pickles: tensors and plain containers are read, whatever they were written with; anything else is refused unrun."""

import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zipmix import InputError
from zipmix.files.safe_pickle import load_pickle, loads

CONTENT: dict[str, Any] = {
    "X": torch.arange(6.0).reshape(2, 3).T,
    "whole": torch.tensor([1, 2]),
    "none": torch.zeros(0, 3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "yes": torch.tensor(True),
    "list": [1, 2.5, "text", None, True, b"bytes", 1 << 70, 1j],
    "nested": {"a": (1, {"b": torch.ones(())}), "s": {1, 2}, "f": frozenset([3])},
    "ordered": OrderedDict([("z", 1), ("a", 2)]),
}


def same(found: Any, expected: Any) -> bool:
    if type(found) is not type(expected):
        return False
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_pickle_writes_is_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol=protocol))
    assert same(load_pickle(path), CONTENT)


@pytest.mark.parametrize("in_zip", [True, False])
def test_what_torch_writes_is_read(in_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "data.pt"
    content = {"X": torch.ones(2, 3), "n": 3, "list": [torch.zeros(1)], "p": torch.nn.Parameter(torch.ones(2))}
    torch.save(content, path, _use_new_zipfile_serialization=in_zip)
    assert same(load_pickle(path), content)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any] | str, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments  # type: ignore[return-value]


def zipped(content: bytes) -> bytes:
    """A file as torch.save writes it, with another pickle in it."""
    file = io.BytesIO()
    torch.save({"X": torch.ones(1)}, file)
    changed = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return changed.getvalue()


def evil(marker: Path) -> dict[str, bytes]:
    """Pickles that would make a folder if what they name were called."""
    make = pickle.dumps(Calls(os.mkdir, str(marker)))
    storage = torch.storage._load_from_bytes  # type: ignore[attr-defined]
    return {
        "os.mkdir": make,
        "os.mkdir, protocol 0": pickle.dumps(Calls(os.mkdir, str(marker)), protocol=0),
        "eval": pickle.dumps(Calls(eval, f"__import__('os').mkdir({str(marker)!r})")),
        "in a list": pickle.dumps([1, {"X": Calls(os.mkdir, str(marker))}]),
        "pickle.loads": pickle.dumps(Calls(pickle.loads, make)),
        "torch.load": pickle.dumps(Calls(torch.load, io.BytesIO(make))),
        "in a storage": pickle.dumps(Calls(storage, make)),
        "in a zipped storage": pickle.dumps(Calls(storage, zipped(make))),
        "in a zip": zipped(make),
        "behind torch.save's number": pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
        + pickle.dumps(1001, protocol=2)
        + pickle.dumps({}, protocol=2)
        + make,
        "dotted name": b"\x80\x04\x8c\x05torch\x8c\x0cos.getcwd.__call__\x93)R.",
        "a module of torch": b"ctorch\nserialization\n.",
        "getattr": b"cbuiltins\ngetattr\n(cbuiltins\nset\nS'pop'\ntR.",
    }


@pytest.mark.parametrize("name", evil(Path("unused")))
def test_nothing_that_a_pickle_names_is_called(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "called"
    content = evil(marker)[name]
    with pytest.raises(InputError, match="only torch tensors, plain containers, numbers and strings are read"):
        loads(content)
    assert not marker.exists()


def test_the_evil_pickles_would_do_it(tmp_path: Path) -> None:
    for name in ("os.mkdir", "os.mkdir, protocol 0", "eval", "in a list", "pickle.loads"):
        marker = tmp_path / name
        pickle.loads(evil(marker)[name])
        assert marker.exists(), name


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.ones(2), r"numpy\._?core\.multiarray\._reconstruct|numpy\._?core\.numeric\._frombuffer"),
        (Path("x"), "pathlib"),
        (range(3), r"builtins\.range"),
        (len, r"builtins\.len"),
        (torch.nn.Linear(1, 1), "torch.nn"),
    ],
)
def test_what_is_not_admitted_is_named(value: Any, named: str) -> None:
    with pytest.raises(InputError, match=f"the pickle holds ({named})"):
        loads(pickle.dumps(value))


def test_a_pickle_cannot_change_the_functions_that_it_may_call() -> None:
    # BUILD (b) sets attributes of what is on the stack.
    attack = b"c_codecs\nencode\n(N}S'__defaults__'\n(I1\ntstb."
    assert "BUILD" in [opcode.name for opcode, _, _ in pickletools.genops(attack)]
    with pytest.raises(InputError, match="changes a function"):
        loads(attack)
    for kind in (b"ccollections\nOrderedDict\n", b"cbuiltins\nset\n", b"ctorch\nSize\n"):
        with pytest.raises(InputError):
            loads(kind + b"(N}S'pop'\nI1\nstb.")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", pickle.dumps(CONTENT)[:-20], b"\x80\x05."])
def test_what_is_no_pickle_is_refused_in_a_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.pkl cannot be read as a pickle") as error:
        load_pickle(path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="there is no file"):
        load_pickle(tmp_path / "none.pkl")
