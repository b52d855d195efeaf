"""What is written: results/benchmarks.json, every row with its machine, versions and command, and benchmarks.md."""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from harness import Finding, Outcome, machine

RESULTS = Path(__file__).parents[1] / "results"


def as_record(name: str, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """An outcome as the JSON file has it."""
    command, where = f"python benchmarks/speed.py --only {name}", machine()
    return {
        "title": outcome.title,
        "command": command,
        "machine": where,
        "seconds": round(seconds, 1),
        "notes": list(outcome.notes),
        "left_out": list(outcome.left_out),
        "rows": [{**row, "machine": where, "command": command} for row in outcome.rows],
        "findings": [{**finding._asdict(), "met": finding.met} for finding in outcome.findings],
    }


def load(folder: Path) -> dict[str, Any]:
    """The cases on record; none where nothing is."""
    path = folder / "benchmarks.json"
    return json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {}


def save(cases: dict[str, Any], folder: Path) -> None:
    """Writes both files."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"command": "make bench", "cases": cases}
    (folder / "benchmarks.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "benchmarks.md").write_text(as_page(cases), encoding="utf-8")


def as_page(cases: dict[str, Any]) -> str:
    """All cases in Markdown, first of all what is asked and whether it is met."""
    machines = sorted({case["machine"] for case in cases.values()})
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; the command under a title repeats that part alone. Contestants of a case take turns",
        "in one process, after a turn that does not count; seconds are medians, with quartiles. Compare ratios, not",
        "seconds.",
        f"Machine: {'; '.join(machines)}.",
        "",
        "## What is asked",
        "",
        "| case | what | asked | measured | |",
        "|---|---|---:|---:|---|",
    ]
    for name, case in cases.items():
        lines += [
            f"| {name} | {finding.what} | {bound(finding)} | {shown(finding.measured)} | {verdict(finding)} |"
            for finding in findings(case)
            if finding.asked is not None
        ]
    for case in cases.values():
        same = common(case["rows"])
        said = [f"`{case['command']}`", f"{case['seconds']:.0f} s in all"]
        said += [f"{same['repeats']} repeats"] if same.get("repeats", 1) > 1 else []
        said += [shown(same["versions"])] if "versions" in same else []
        said += [case["machine"]] if len(machines) > 1 else []
        lines += ["", f"## {case['title']}", "", "; ".join(said) + ".", "", *table(case["rows"], hidden=same)]
        found = [f"- {finding.what}: **{shown(finding.measured)}**{told(finding)}" for finding in findings(case)]
        lines += ["", *found] if found else []
        for sentence in (*case["notes"], *case["left_out"]):
            lines += ["", sentence]
    return "\n".join(lines) + "\n"


def findings(case: dict[str, Any]) -> list[Finding]:
    """The numbers that a case on record is about."""
    return [Finding(*(finding[field] for field in Finding._fields)) for finding in case["findings"]]


def bound(finding: Finding) -> str:
    """What is asked, in words."""
    return f"at {'most' if finding.at_most else 'least'} {shown(finding.asked)}"


def verdict(finding: Finding) -> str:
    """Whether it is met, in words."""
    return "met" if finding.met else "not met"


def told(finding: Finding) -> str:
    """Behind a number: what is asked, and whether it is met."""
    return "" if finding.asked is None else f" ({bound(finding)} asked: {verdict(finding)})"


def common(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a page need not say row by row, since it is the same in all of them."""
    first = {key: rows[0][key] for key in ("machine", "command", "versions", "repeats")}
    return {key: value for key, value in first.items() if all(row[key] == value for row in rows)}


def table(rows: list[dict[str, Any]], hidden: Container[str]) -> list[str]:
    """Rows as a Markdown table; a column that is empty in all of them is left out."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in hidden))
    columns = [key for key in columns if any(row.get(key) not in ("", None) for row in rows)]
    lines = ["| " + " | ".join(map(heading, columns)) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(shown(row.get(key)) for key in columns) + " |" for row in rows]


def heading(key: str) -> str:
    """A key of the JSON file as a heading, its unit set apart."""
    words, _, unit = key.rpartition("_")
    return f"{words.replace('_', ' ')}, {UNITS[unit]}" if unit in UNITS else key.replace("_", " ")


UNITS = {"s": "s", "gb": "GB", "nats": "nats"}


def shown(value: Any) -> str:
    """A value as a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    if isinstance(value, list):
        return " to ".join(map(shown, value)) if len(value) == 2 else ", ".join(map(shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
