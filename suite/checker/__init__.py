"""The derivation checker: holds a solution's functions against the Pyro program and names the mistake.

Public names are loaded when they are first used, so that the command line answers before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zipmix.checker.engine import check as check
    from zipmix.checker.report import Finding as Finding
    from zipmix.checker.report import ItemReport as ItemReport
    from zipmix.checker.report import Report as Report

_HOME = {"check": "engine", "Finding": "report", "ItemReport": "report", "Report": "report"}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zipmix.checker' has no attribute {name!r}")
    return getattr(import_module(f"zipmix.checker.{_HOME[name]}"), name)
