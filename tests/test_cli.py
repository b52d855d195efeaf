"""The command line as a person runs it: in a process of its own, files read back, errors in one sentence."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import zipmix
from zipmix.cli import app, main


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "zipmix", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "counts.csv"
    X = zipmix.simulate(60, 3, 2, seed=5).X.numpy().copy()
    X[4, 1] = np.nan
    pd.DataFrame(X, columns=["a", "b", "c"]).to_csv(path, index=False)
    return path


def test_help_is_answered_without_torch(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['zipmix', '--help']\nfrom zipmix.cli import main\ntry:\n    main()\nfinally:\n"
    code += "    assert not {'torch', 'pyro', 'pandas', 'matplotlib', 'arviz'} & set(sys.modules), 'heavy'"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout
    assert "fit" in done.stdout


def test_the_version_is_answered_without_torch() -> None:
    code = "import sys; sys.argv = ['zipmix', '--version']\nfrom zipmix.cli import main\ntry:\n    main()\nfinally:\n"
    code += "    assert not {'torch', 'pyro', 'pandas'} & set(sys.modules), 'heavy'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"zipmix {version('zipmix')}\n"


@pytest.mark.parametrize("command", ["fit", "compare", "report", "simulate", "check", "coursework"])
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_fit_writes_what_it_is_asked_for(counts: Path, tmp_path: Path) -> None:
    done = run(
        "fit", counts, "-k", 2, "--set", "n_starts=3", "--save", "fit.nc", "--rows", "rows.csv", "--impute", "full.csv",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "component" in done.stdout
    fitted = zipmix.load(tmp_path / "fit.nc")
    assert fitted.names == ("a", "b", "c")
    assert fitted.settings["n_starts"] == 3
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows["component"].tolist() == fitted.predict().tolist()
    assert np.allclose(rows[["r0", "r1"]].sum(axis=1), 1.0)
    table, filled = pd.read_csv(counts), pd.read_csv(tmp_path / "full.csv")
    assert filled.isna().sum().sum() == 0
    assert filled.where(table.notna()).equals(table.astype(filled.dtypes))


def test_names_of_rows_come_back(tmp_path: Path) -> None:
    (tmp_path / "named.csv").write_text(",a,b\nann,1,0\nbob,0,2\ncy,3,\n")
    done = run("fit", "named.csv", "-k", 1, "--save", "made/fit.nc", "--rows", "rows.csv", "--impute", "full.csv",
               folder=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path / "rows.csv")["row"].tolist() == ["ann", "bob", "cy"]
    assert zipmix.load(tmp_path / "made" / "fit.nc").row_names == ("ann", "bob", "cy")
    again = zipmix.load_data(tmp_path / "named.csv")
    assert again.row_names == ("ann", "bob", "cy")
    assert pd.read_csv(tmp_path / "full.csv", index_col=0).index.tolist() == ["ann", "bob", "cy"]


def test_simulate_and_compare_and_report(tmp_path: Path) -> None:
    drawn = run("simulate", 50, 3, 2, "x.csv", "--truth", "truth.nc", "--prior", "f=0.2", "--seed", 4, folder=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    expected = zipmix.simulate(50, 3, 2, prior=zipmix.Prior(f=0.2), seed=4)
    assert np.array_equal(pd.read_csv(tmp_path / "x.csv").to_numpy(), expected.X.numpy())

    asked = ["compare", "x.csv", "-k", 2, "-m", "em", "-m", "gibbs", "--set", "gibbs.n_draws=30", "--set",
             "gibbs.n_warmup=10", "--starts", 4, "--chains", 2]  # fmt: skip
    done = run(*asked, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results" / "x" / "comparison.json").read_text())
    assert [row["method"] for row in record["methods"]] == ["em", "gibbs"]
    assert record["methods"][1]["settings"]["n_draws"] == 30
    assert record["command"] == " ".join(["zipmix", *map(str, asked)])
    again = run(*asked, folder=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    (tmp_path / "results" / "x" / "report.html").unlink()
    assert run("report", ".", folder=tmp_path / "results" / "x").returncode == 0
    assert (tmp_path / "results" / "x" / "report.html").is_file()


UNUSABLE = {
    "fit none.csv -k 2": "there is no file 'none.csv'",
    "fit nmes -k 2": "Did you mean 'nmes1988'?",
    "fit nmes1988 -k 0": "n_components must be a whole number >= 1, got 0",
    "fit nmes1988 -k 2 -m emm": "Did you mean 'em'?",
    "fit nmes1988 -k 2 --set n_strts=3": "Did you mean 'n_starts'?",
    "fit nmes1988 -k 2 --set n_starts": "--set must be NAME=VALUE",
    "fit nmes1988 -k 2 --set n_starts=1 --set n_starts=2": "twice",
    "fit nmes1988 -k 2 --prior g=2": "alpha, a, b, e, f",
    "fit nmes1988 -k 2 --prior alpha=x": "must be a number",
    "fit nmes1988 -k 2 --prior a=True": "must be a number",
    "fit nmes1988 -k 2 --prior a": "write --prior alpha=2",
    "fit nmes1988 -k 2 --prior alpha=0.5": "there is no MAP",
    "fit text.csv -k 2": "'two'",
    "fit half.csv -k 2": "fractional",
    "compare nmes1988 -k 2 -m nuts -o out": "methods must be among",
    "compare nmes1988 -k 2 --set n_draws=3 -o out": "METHOD.NAME=VALUE",
    "compare nmes1988 -k 2 --starts 1 -o out": "n_starts must be at least n_chains",
    "report .": "holds no comparison.json",
    "simulate 0 2 2 out.csv": "n must be a whole number >= 1",
    "simulate 3 2 2 text.csv": "exists already",
    "simulate 3 2 2 out.csv --truth out.csv": "written twice",
    "fit nmes1988 -k 2 --save .": "is a folder",
    "fit nmes1988 -k 2 --rows a.csv --impute ./a.csv": "written twice",
    "fit nmes1988 -k 2 --set n_starts={[]:1}": "n_starts must be a whole number",
    "compare text.csv -k 2 -o half.csv --overwrite": "half.csv is a file",
}


@pytest.mark.parametrize("line", UNUSABLE)
def test_what_cannot_be_used_gets_one_sentence(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.csv").write_text("a,b\n1,2\n3,two\n")
    (tmp_path / "half.csv").write_text("a,b\n1,2\n3,0.5\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zipmix", *line.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr()
    assert stopped.value.code == 2
    assert told.err.startswith("zipmix: ")
    assert told.err.count("\n") == 1
    assert UNUSABLE[line] in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_file_that_exists_is_kept(counts: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("mine")
    done = run("fit", counts, "-k", 2, "--rows", "rows.csv", folder=tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "rows.csv").read_text() == "mine"
