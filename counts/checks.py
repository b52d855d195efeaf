"""What every layer raises and checks: the two errors of zipmix, and settings that must be numbers or flags."""

import math
from numbers import Real
from typing import Any


class InputError(ValueError):
    """Invalid input; the message says what was got and what is allowed."""


class UnknownSetting(InputError, TypeError):
    """A keyword that a method does not have; a TypeError, as for any call with a misspelt keyword."""


def check_whole(value: int, name: str, at_least: int) -> int:
    """A setting that must be a whole number.

    Raises:
        InputError: no whole number, or below the least value allowed.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < at_least:
        raise InputError(f"{name} must be a whole number >= {at_least}, got {value!r}.")
    return value.__index__()


def check_real(value: Any, name: str, *, zero: bool = False) -> float:
    """A setting that must be a positive number, or 0 where zero says so.

    Raises:
        InputError: no finite number, or not in its range.
    """
    number = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise InputError(f"{name} must be a finite number {'>=' if zero else '>'} 0, got {value!r}.")
    return float(value)


def check_flag(value: Any, name: str) -> bool:
    """A setting that must be True or False.

    Raises:
        InputError: anything else.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {value!r}.")
    return value
