"""The record that a cell leaves: its request, why it failed, its traces and its warm-up."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zipmix.comparison.report import plain
from zipmix.study.file import Cell, Study


def record_file(runs: Path, cell: Cell) -> Path:
    """Where the record of a cell is kept."""
    return runs / f"{cell.name}.json"


def is_done(runs: Path, cell: Cell, study: Study) -> bool:
    """Whether a cell has been run with the settings that the study has now."""
    record = read_record(runs, cell)
    return (
        record is not None
        and record["asked"] == asked(cell, study)
        and record["failure"] is None
        and (runs / cell.name / "comparison.json").is_file()
    )


def read_record(runs: Path, cell: Cell) -> dict[str, Any] | None:
    """The record of a cell; None where there is none that can be read."""
    try:
        record = json.loads(record_file(runs, cell).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"asked", "failure"} <= set(record) else None


def asked(cell: Cell, study: Study) -> dict[str, Any]:
    """All that the outcome of a cell depends on, fit for JSON."""
    return plain(
        {
            "zipmix": version("zipmix"),
            "data": cell.data,
            "digest": cell.digest,
            "n_components": cell.n_components,
            "seed": cell.seed,
            **{name: getattr(study, name) for name in ("methods", "starts", "chains", "held_out", "budget")},
            "prior": study.prior,
            "settings": study.settings,
        }
    )
