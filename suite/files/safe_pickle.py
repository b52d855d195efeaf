"""Reads pickles of tensors and plain containers, and nothing else: opening one can run no code.

A pickle names the functions that rebuild its objects and calls them. This unpickler knows only the names below;
strings, numbers, lists, tuples, sets and dictionaries need none. Whatever else a file names is refused before anything
of it is called.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from zipmix.counts.checks import InputError

ADMITTED = "torch tensors, plain containers, numbers and strings"


def load_pickle(path: str | Path) -> Any:
    """What a pickle holds, if it holds only torch tensors, plain containers, numbers and strings.

    Args:
        path: a file written by pickle.dump or torch.save.
    Returns:
        The object, tensors on the CPU.
    Raises:
        InputError: no such file, not a pickle, or a pickle of anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"path: there is no file {path}.")
    return loads(path.read_bytes(), str(path))


def loads(content: bytes, name: str = "the pickle") -> Any:
    """The object in the bytes of a pickle; see load_pickle."""
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            return _saved(content)
        value = _Unpickler(io.BytesIO(content)).load()
        # The number that torch.save wrote in front before it wrote zip files.
        if type(value) is int and value == torch.serialization.MAGIC_NUMBER:
            return _saved(content)
        return value
    except InputError as error:
        raise InputError(f"path: {name} {error}; only {ADMITTED} are read. Save it again as such.") from None
    except Exception as error:  # a broken pickle can fail in any way
        raise InputError(
            f"path: {name} cannot be read as a pickle ({type(error).__name__}); only {ADMITTED} are read."
        ) from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        if (module, name) not in _KNOWN:
            raise InputError(f"holds {module}.{name}")
        return _KNOWN[module, name]


class _Rebuild:
    """A function that a pickle may call and do nothing else with: a pickle can also set attributes of what it names."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise InputError("changes a function")


def _saved(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _encode(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 and below write bytes."""
    return text.encode(encoding)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Rebuild(_encode),
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _Rebuild(torch._utils._rebuild_parameter),
    ("torch.storage", "_load_from_bytes"): _Rebuild(_saved),
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, complex, bytearray, slice)
    },
}
