"""Studies: every cell run once, resumed where stopped, failures counted, one page over all of it."""

import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from multiprocessing import active_children
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import zipmix
from zipmix.cli import app
from zipmix.study import rewrite_study, run_study, runs
from zipmix.study.file import read_study
from zipmix.study.records import asked
from zipmix.study.runs import Task, climb, run_cell, warm_up
from zipmix.study.workers import in_processes

ROOT = Path(__file__).parent.parent
HOSTILE = '<script>alert("x")</script>'
SCHEMA = json.loads(files("zipmix").joinpath("schemas/study.schema.json").read_text())

TINY = """
title = '<script>alert("x")</script>'
data = ["a & b.csv"]
components = [1, 2]
methods = ["em", "exact", "cavi"]
starts = 3
chains = 1
held_out = 0
processes = 1
[settings.cavi]
n_draws = 20
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    X = zipmix.simulate(30, 3, 2, seed=5).X.numpy()
    pd.DataFrame(X, columns=["a", HOSTILE, "c"]).to_csv(tmp_path / "a & b.csv", index=False)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def here(function: object, tasks: list[Task], *, n_processes: int) -> Iterator[object]:
    """in_processes without processes: the quick way through a study."""
    from zipmix.study.workers import Outcome

    for task in tasks:
        try:
            yield Outcome(task, run_cell(task), None)
        except RuntimeError as error:
            yield Outcome(task, None, f"RuntimeError: {error}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells run in this process, and no figure is drawn."""
    monkeypatch.setattr(runs, "in_processes", here)
    monkeypatch.setattr("zipmix.comparison.figures.comparison_figures", lambda comparison: {})
    monkeypatch.setattr("zipmix.study.figures.study_figures", lambda summary: {})
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)


def summary_of(folder: Path) -> dict[str, object]:
    record = json.loads((folder / "study.json").read_text())
    jsonschema.validate(record, SCHEMA)
    return record


# The study file


def test_a_study_file_is_read_with_its_defaults(place: Path) -> None:
    (place / "least.toml").write_text('data = ["nmes1988", "a & b.csv"]\ncomponents = [3]')
    study, cells = read_study(place / "least.toml")
    assert study.title == "least"
    assert study.seeds == (0,)
    assert study.methods == ("em", "pyro_map", "cavi", "pyro_svi", "gibbs")
    assert (study.starts, study.chains, study.held_out, study.budget) == (50, 4, 0.1, None)
    assert [cell.name for cell in cells] == ["nmes1988-K3-seed0", "a-b-K3-seed0"]
    assert cells[1].place == str(place / "a & b.csv")


def test_names_of_cells_are_plain_and_differ(place: Path) -> None:
    names = ["../a & b.csv", "..a.csv", "a & b.csv", "é.csv"]
    (place / "s").mkdir()
    for name in names[1:]:
        shutil.copy(place / "a & b.csv", place / "s" / name)
    (place / "s" / "s.toml").write_text(f"data = {json.dumps(names)}\ncomponents = [1]")
    _, cells = read_study(place / "s" / "s.toml")
    assert [cell.name for cell in cells] == ["a-b-K1-seed0", "a-K1-seed0", "a-b-2-K1-seed0", "data-K1-seed0"]


REFUSED = {
    "data = [": "is not TOML",
    "component = [2]": "there is no key 'component'; the keys are title, data, components",
    "components = [2]": "the key data is missing; it must be a list of data sets, each once",
    'data = "nmes1988"\ncomponents = [2]': "data must be a list of data sets, each once; got 'nmes1988'",
    "data = []\ncomponents = [2]": "data must be a list of data sets, each once; got []",
    'data = ["nmes1988", "nmes1988"]\ncomponents = [2]': "data must be a list of data sets, each once",
    'data = ["nmes"]\ncomponents = [2]': "Did you mean 'nmes1988'?",
    'data = ["none.csv"]\ncomponents = [2]': "there is no file",
    'data = ["nmes1988"]\ncomponents = [0]': "components must be a list of whole numbers >= 1, each once; got [0]",
    'data = ["nmes1988"]\ncomponents = 2': "components must be a list of whole numbers >= 1, each once; got 2",
    'data = ["nmes1988"]\ncomponents = [true]': "whole numbers >= 1, each once; got [True]",
    "{}seeds = [-1]": "seeds must be a list of whole numbers >= 0, each once; got [-1]",
    "{}methods = ['emm']": "methods must be a list of methods, each once, among em, pyro_map",
    "{}starts = 0": "starts must be a whole number >= 1; got 0",
    "{}starts = 2": "n_starts must be at least n_chains = 4, got 2",
    "{}held_out = 0.9": "held_out must be a number from 0 to 0.5; got 0.9",
    "{}budget = inf": "budget must be a number of seconds > 0; got inf",
    "{}processes = 0": "processes must be a whole number >= 1; got 0",
    "{}title = ''": "title must be a text; got ''",
    "{}prior = 'weak'": 'prior must be "flat", or a table of numbers named alpha, a, b, e, f',
    "{}[prior]\ng = 2": 'prior must be "flat", or a table of numbers named alpha, a, b, e, f',
    "{}[prior]\na = -2": "prior.a must be finite and greater than 0",
    "{}[prior]\nalpha = [1.0, 2.0, 3.0]": "prior.alpha must be one number or one per component (2)",
    "{}[settings.gibbs]\nn_drws = 2": "has no setting 'n_drws'",
    "{}[settings.gibs]\nn_draws = 2": "methods must be among",
    "{}[settings.online]\nchunk_size = 2": "settings.online belongs to no method of the study",
    "{}[settings]\ngibbs = 2": "settings must be a table per method",
    "{}[settings.gibbs]\nn_draws = 2024-01-01": "settings must be a table per method",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_used_is_told_in_one_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text.replace("{}", 'data = ["nmes1988"]\ncomponents = [2]\n'))
    with pytest.raises(zipmix.InputError) as told:
        run_study(path, tmp_path / "out")
    assert str(told.value).startswith(str(path))
    assert REFUSED[text] in str(told.value)
    assert not (tmp_path / "out").exists()


# Running


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study run by the command line, in processes of its own."""
    place = tmp_path_factory.mktemp("study")
    X = zipmix.simulate(30, 3, 2, seed=5).X.numpy()
    pd.DataFrame(X, columns=["a", HOSTILE, "c"]).to_csv(place / "a & b.csv", index=False)
    (place / "tiny.toml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        told = CliRunner().invoke(app, ["compare", "tiny.toml"])
    assert told.exit_code == 0, told.output
    assert "wrote results/tiny/study.html" in told.output
    return place / "results" / "tiny"


def test_the_folder_holds_the_comparisons_and_the_summary(done: Path) -> None:
    assert sorted(entry.name for entry in done.iterdir()) == ["figures", "runs", "study.html", "study.json"]
    names = ["a-b-K1-seed0", "a-b-K2-seed0"]
    assert sorted(entry.name for entry in (done / "runs").iterdir()) == [
        file for name in names for file in (name, f"{name}.json")
    ]
    for name in names:
        record = json.loads((done / "runs" / name / "comparison.json").read_text())
        assert record["command"] == (
            f"zipmix compare 'a & b.csv' -k {name[5]} --seed 0 -m em -m exact -m cavi --starts 3 --chains 1 "
            "--held-out 0 --set cavi.n_draws=20"
        )


def test_the_numbers_are_those_of_the_comparisons(done: Path) -> None:
    summary = summary_of(done)
    rows = {}
    for cell in summary["cells"]:  # type: ignore[attr-defined]
        record = json.loads((done / "runs" / cell["cell"]["name"] / "comparison.json").read_text())
        rows[cell["cell"]["n_components"]] = {row["method"]: row for row in record["methods"]}
    # 30 rows: the sum over all partitions into one component is one term; into two it is too long.
    assert "exact" in rows[1]
    assert "exact" not in rows[2]
    methods = {row["method"]: row for row in summary["methods"]}  # type: ignore[attr-defined]
    assert (methods["exact"]["n_failed"], methods["em"]["n_failed"], methods["em"]["n_runs"]) == (1, 0, 2)
    ranks = []
    for K in (1, 2):
        gaps = {name: rows[K]["em"]["log_posterior"] - row["log_posterior"] for name, row in rows[K].items()}
        assert min(gaps.values()) == 0
        order = sorted(gaps.values())
        assert all(a > 0.1 for a in order[1:]) or K == 1
        level = {name: 0.0 if gap <= 0.1 else gap for name, gap in gaps.items()} | (
            {} if K == 1 else {"exact": float("inf")}
        )
        ranks.append(pd.Series(level).rank())
    expected = (ranks[0] + ranks[1]) / 2
    assert {name: row["mean_rank"] for name, row in methods.items()} == pytest.approx(expected.to_dict())
    best = {entry["n_components"]: entry for entry in summary["optima"]}  # type: ignore[attr-defined]
    for K in (1, 2):
        assert best[K]["log_posterior"] == rows[K]["em"]["log_posterior"]
        assert best[K]["elbo"] == rows[K]["cavi"]["elbo"]
    assert methods["em"]["warm_up"] > 0


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_stands_alone_and_links_to_the_reports(done: Path) -> None:
    text = (done / "study.html").read_text()
    page = _Page()
    page.feed(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # hostile names are text
    assert "&lt;script&gt;" in text
    images = [values for tag, values in page.tags if tag == "img"]
    assert len(images) == 2
    assert all((image["src"] or "").startswith("data:image/png;base64,") and image["alt"] for image in images)
    links = [values["href"] for tag, values in page.tags if tag == "a"]
    assert set(links) == {f"runs/a-b-K{K}-seed0/report.html" for K in (1, 2)}
    assert all((done / str(link)).is_file() for link in links)
    assert "no limit of time" in text
    assert "Failed, and ranked last there: exact 1." in text
    assert "<script>alert" not in text


def test_the_summary_is_written_again_without_fitting(done: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(done, kept)
    before = summary_of(kept)
    for page in kept.glob("runs/*/report.html"):
        page.unlink()
        shutil.rmtree(page.parent / "fits")
    (kept / "study.html").unlink()
    told = CliRunner().invoke(app, ["report", str(kept)])
    assert told.exit_code == 0, told.output
    after = summary_of(kept)
    assert [cell["page"] for cell in after["cells"]] == [  # type: ignore[attr-defined]
        f"runs/a-b-K{K}-seed0/comparison.json" for K in (1, 2)
    ]
    assert after["methods"] == before["methods"]
    (kept / "study.json").write_text('{"study": 3}')
    with pytest.raises(zipmix.InputError, match="is not a study of zipmix"):
        rewrite_study(kept)


@pytest.mark.usefixtures("quick")
def test_a_study_goes_on_where_it_was_stopped(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ran = place / "out", []

    def stopped(function: object, tasks: list[Task], *, n_processes: int) -> Iterator[object]:
        for outcome in here(function, tasks[:1], n_processes=n_processes):
            ran.append(tasks[0].cell.name)
            yield outcome
        (tasks[0].runs / f".{tasks[1].cell.name}.half").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "in_processes", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(place / "tiny.toml", folder)
    assert ran == ["a-b-K1-seed0"]
    assert [cell["state"] for cell in summary_of(folder)["cells"]] == ["done", "not run"]  # type: ignore[attr-defined]
    assert "1 of 2 cells are not run yet" in (folder / "study.html").read_text()
    assert sorted(entry.name for entry in (folder / "runs").iterdir()) == ["a-b-K1-seed0", "a-b-K1-seed0.json"]

    def noted(function: object, tasks: list[Task], *, n_processes: int) -> Iterator[object]:
        ran.extend(task.cell.name for task in tasks)
        yield from here(function, tasks, n_processes=n_processes)

    def run(text: str = TINY, **settings: bool) -> list[str]:
        ran.clear()
        (place / "tiny.toml").write_text(text)
        run_study(place / "tiny.toml", folder, **settings)
        assert {cell["state"] for cell in summary_of(folder)["cells"]} == {"done"}  # type: ignore[attr-defined]
        return list(ran)

    monkeypatch.setattr(runs, "in_processes", noted)
    assert run() == ["a-b-K2-seed0"]
    assert run() == []
    assert run(TINY.replace("[1, 2]", "[2, 1]").replace("processes = 1", "processes = 3")) == []
    assert run(TINY.replace("n_draws = 20", "n_draws = 21").replace("[1, 2]", "[1]")) == ["a-b-K1-seed0"]
    shutil.rmtree(folder / "runs" / "a-b-K1-seed0")
    (folder / "runs" / "a-b-K2-seed0.json").write_text("{")
    assert run() == ["a-b-K1-seed0", "a-b-K2-seed0"]
    X = pd.read_csv(place / "a & b.csv")
    X.iloc[0, 0] += 1
    X.to_csv(place / "a & b.csv", index=False)
    assert run(TINY.replace("[1, 2]", "[1]")) == ["a-b-K1-seed0"]
    assert run(TINY.replace("[1, 2]", "[1]")) == []
    assert run(TINY.replace("[1, 2]", "[1]"), overwrite=True) == ["a-b-K1-seed0"]


@pytest.mark.usefixtures("quick")
def test_a_cell_that_fails_stops_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = runs.compare

    def compare(X: object, n_components: int, **settings: object) -> object:
        if n_components == 1:
            raise RuntimeError("out of luck")
        return fine(X, n_components, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "compare", compare)
    run_study(place / "tiny.toml", place / "out")
    summary = summary_of(place / "out")
    assert [cell["state"] for cell in summary["cells"]] == ["failed", "done"]  # type: ignore[attr-defined]
    assert summary["cells"][0]["failure"] == "RuntimeError: out of luck"  # type: ignore[index]
    failed = {row["method"]: row["n_failed"] for row in summary["methods"]}  # type: ignore[attr-defined]
    assert failed == {"em": 1, "exact": 2, "cavi": 1}
    assert "RuntimeError: out of luck" in (place / "out" / "study.html").read_text()
    monkeypatch.setattr(runs, "compare", fine)
    run_study(place / "tiny.toml", place / "out")
    again = summary_of(place / "out")
    assert [cell["state"] for cell in again["cells"]] == ["done", "done"]  # type: ignore[attr-defined]


def test_nothing_of_the_users_is_touched(place: Path) -> None:
    thesis = place / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("x")
    with pytest.raises(zipmix.InputError, match="holds no study"):
        run_study(place / "tiny.toml", thesis)
    with pytest.raises(zipmix.InputError, match="is a file"):
        run_study(place / "tiny.toml", thesis / "chapter.tex")
    assert [entry.name for entry in thesis.iterdir()] == ["chapter.tex"]


def test_options_that_belong_in_the_study_file_are_refused(place: Path) -> None:
    told = CliRunner().invoke(app, ["compare", str(place / "tiny.toml"), "-k", "2"])
    assert isinstance(told.exception, zipmix.InputError)
    assert "--components does not go with a study" in str(told.exception)
    told = CliRunner().invoke(app, ["compare", "nmes1988"])
    assert "-k is missing" in str(told.exception)


# The pieces


@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_task_that_kills_its_process_fails_alone(n_processes: int) -> None:
    tasks = ["2 * 2", "__import__('os')._exit(7)", "3 * 3", "int('x')", "4 * 4"]
    found = {outcome.task: outcome for outcome in in_processes(eval, tasks, n_processes=n_processes)}
    assert [found[task].value for task in tasks] == [4, None, 9, None, 16]
    assert [found[task].error for task in tasks] == [
        None,
        "its process ended with exit status 7",
        None,
        "ValueError: invalid literal for int() with base 10: 'x'",
        None,
    ]


def test_processes_end_with_the_iteration() -> None:
    outcomes = in_processes(eval, ["1", "__import__('time').sleep(600)"], n_processes=2)
    assert next(outcomes).value == 1
    assert len(active_children()) == 1
    outcomes.close()
    assert not active_children()


def test_the_climb_is_the_running_best() -> None:
    X = zipmix.simulate(30, 3, 2, seed=5).X
    gibbs = zipmix.fit(X, 2, "gibbs", n_chains=2, n_warmup=5, n_draws=40, init="prior")
    best = -float("inf")
    expected = []
    for second, objectives in zip(gibbs.trace_seconds.double().tolist(), gibbs.trace.T.tolist(), strict=True):
        if max(objectives) > best:
            best = max(objectives)
            expected.append((second, best))
    found = climb(gibbs)
    assert len(expected) > 3
    assert list(zip(found["seconds"], found["objective"], strict=True)) == expected


def test_warm_up_is_done_once_and_names_every_method() -> None:
    first = warm_up(("em", "gibbs"))
    assert set(first) == {"imports", "em", "gibbs"}
    assert warm_up(("em", "gibbs")) is first


# What is committed


def test_the_committed_study_has_the_documented_structure() -> None:
    folder = ROOT / "results" / "study"
    record = summary_of(folder)
    study, cells = read_study(folder / "study.toml")
    assert [cell["cell"]["name"] for cell in record["cells"]] == [cell.name for cell in cells]  # type: ignore[attr-defined]
    for cell in cells:
        asked_then = json.loads((folder / "runs" / f"{cell.name}.json").read_text())["asked"]
        assert asked_then | {"zipmix": ""} == asked(cell, study) | {"zipmix": ""}
    comparison = json.loads(files("zipmix").joinpath("schemas/comparison.schema.json").read_text())
    for cell in cells:
        jsonschema.validate(json.loads((folder / "runs" / cell.name / "comparison.json").read_text()), comparison)
    record["methods"][0].pop("mean_rank")  # type: ignore[index]
    with pytest.raises(jsonschema.ValidationError, match="'mean_rank' is a required property"):
        jsonschema.validate(record, SCHEMA)
