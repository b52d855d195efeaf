"""What the README says is true: its example runs, its commands exist, its numbers are those of results/."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import zipmix
from zipmix import METHODS
from zipmix.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("counts.npy", zipmix.simulate(200, 3, 5, seed=0).X.numpy().astype(np.uint16))
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(compile(example, "README.md", "exec"), names)
    assert names["full"].shape == (4406, 6)  # type: ignore[attr-defined]
    assert "posterior" in names["summary"].groups()  # type: ignore[attr-defined]
    assert names["fit"].parameters.lam.shape == (5, 3)  # type: ignore[attr-defined]


def test_commands_and_their_options_exist() -> None:
    lines = [line for line in re.findall(r"^    (zipmix .*)$", README, re.M) if not line.startswith("zipmix ...")]
    assert len(lines) >= 4
    for line in lines:
        command, *arguments = shlex.split(line)[1:]
        told = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert told.exit_code == 0, line
        for option in (argument for argument in arguments if argument.startswith("--")):
            assert option in told.output, line


def test_the_table_of_methods_is_complete() -> None:
    assert re.findall(r"^\| `(\w+)` \| ", README, re.M) == [name for name in ORDER if name in METHODS]
    assert set(ORDER) == set(METHODS)


ORDER = ("em", "pyro_map", "cavi", "online", "pyro_svi", "gibbs", "collapsed_gibbs", "pyro_nuts", "exact")


def test_the_result_table_is_that_of_the_comparison_in_results() -> None:
    table = re.search(r"<!-- table of methods -->\n(.*?)<!-- end -->", README, re.S)
    assert table is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].strip().splitlines()][2:]
    record = json.loads((ROOT / "results" / "nmes1988" / "comparison.json").read_text(encoding="utf-8"))
    assert [row[0] for row in rows] == [row["method"] for row in record["methods"]]
    for row, method in zip(rows, record["methods"], strict=True):
        # `make compare` writes results/ again: times differ, and on another processor what is drawn may as well.
        assert abs(float(row[1]) - method["log_posterior"]) < (20 if method["ess_per_second"] else 1)


def test_no_public_function_shares_its_name_with_a_module() -> None:
    # `import zipmix.name` would put the module in the function's place.
    modules = {path.stem for path in (ROOT / "suite").glob("*.py")}
    modules |= {path.parent.name for path in (ROOT / "suite").glob("*/__init__.py")}
    assert not modules & set(zipmix.__all__)
