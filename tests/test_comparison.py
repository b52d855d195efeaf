"""The comparison and its report: numbers against direct computation, one folder written whole, nothing lost."""

import json
import re
from functools import wraps
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import matplotlib
import numpy as np
import pytest
import torch
from scipy import stats

import zipmix
from zipmix.comparison.comparison import Comparison, compare
from zipmix.comparison.held_out import score, split
from zipmix.comparison.report import as_record, read_comparison, write_report
from zipmix.comparison.tables import TextTable, as_latex, methods_table
from zipmix.comparison.verdict import Verdict, agreeing_digits, interval, reach_verdict
from zipmix.models.parameters import Parameters
from zipmix.outputs import refuse_folder

QUICK = {
    "pyro_map": {"n_adam": 20},
    "pyro_svi": {"n_steps": 60, "n_draws": 50},
    "cavi": {"n_draws": 50},
    "gibbs": {"n_warmup": 50, "n_draws": 100},
}
HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def compared() -> Comparison:
    drawn = zipmix.simulate(80, 4, 2, seed=3)
    data = zipmix.Data(drawn.X, ("a", "b", "c", HOSTILE), None, "drawn")
    return compare(data, 2, n_starts=6, n_chains=2, settings=QUICK)


@pytest.fixture(scope="module")
def folder(compared: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("results") / "drawn"
    write_report(compared, place)
    return place


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zipmix.comparison.figures.comparison_figures", lambda _: {})


def test_methods_begin_at_the_same_starts(compared: Comparison) -> None:
    em, cavi, gibbs, pyro_map = (compared.fits[name].settings["start"] for name in ("em", "cavi", "gibbs", "pyro_map"))
    assert em.pi.shape == (6, 2)
    assert all(torch.equal(a, b) for a, b in zip(em, cavi, strict=True))
    assert all(torch.equal(a[:2], b) for a, b in zip(em, gibbs, strict=True))
    assert all(torch.equal(a[0], b) for a, b in zip(em, pyro_map, strict=True))


def test_gaps_are_those_of_the_log_posterior(compared: Comparison) -> None:
    direct = {
        name: zipmix.log_posterior(compared.data.X, fitted.parameters).item() for name, fitted in compared.fits.items()
    }
    for row in compared.summaries:
        assert row.log_posterior == pytest.approx(direct[row.method], rel=1e-12)
        assert row.gap == pytest.approx(max(direct.values()) - direct[row.method], abs=1e-9)


def test_matched_components_are_those_of_the_reference(compared: Comparison) -> None:
    assert compared.reference == "em"
    reference = compared.fits["em"].parameters
    theirs = compared.fits["pyro_map"].parameters
    flipped = Parameters(*(value.flip(0) for value in theirs))
    straight, other = (
        sum(((a - b) ** 2).sum().item() for a, b in zip(point, reference, strict=True)) for point in (theirs, flipped)
    )
    nearer = theirs if straight < other else flipped
    assert all(torch.equal(a, b) for a, b in zip(compared.matched["pyro_map"], nearer, strict=True))


def test_shares_of_zeros_against_simulation(compared: Comparison) -> None:
    X = compared.data.X
    assert compared.zeros.observed_D.numpy() == pytest.approx((X == 0).numpy().mean(0), rel=1e-14)
    n = 40_000
    replicated = zipmix.simulate(n, 4, 2, parameters=compared.fits["em"].parameters, seed=1).X
    share = (replicated == 0).double().mean(0)
    error = (share * (1 - share) / n).sqrt()
    assert bool(((compared.zeros.predicted["em"] - share).abs() < 4.5 * error).all())


def test_the_verdict_says_that_derivation_and_autodiff_agree(compared: Comparison) -> None:
    verdict = compared.verdict
    assert verdict.density_digits is not None
    assert verdict.density_digits > 12
    assert verdict.gradient is not None
    assert verdict.gradient < 1e-6
    assert verdict.map_digits is not None
    assert verdict.map_digits > 9
    assert "stationary" in verdict.sentences[0]


def test_the_verdict_sees_a_wrong_optimum(compared: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from zipmix.comparison import verdict

    em = compared.fits["em"]
    moved = replace(em, parameters=em.parameters._replace(lam=em.parameters.lam * 1.01), objective=em.objective + 1e-3)
    reached = verdict.reach_verdict({"em": moved}, {}, {"em": moved.parameters}, {}, {}, compared.prior)
    assert "did not stop at an optimum" in reached.sentences[0]
    assert reached.density_digits is not None
    assert reached.density_digits < 7


def test_the_verdict_shows_intervals_that_are_too_narrow() -> None:
    rng = np.random.default_rng(4)
    wide = Parameters(*(torch.from_numpy(rng.normal(size=(2, 4000, *shape))) for shape in ((2,), (2, 3), (2, 3))))
    halved = Parameters(*(value / 2 for value in wide))
    fits = {"cavi": SimpleNamespace(variational=True, converged=True), "gibbs": SimpleNamespace(variational=False)}
    fits["gibbs"].converged = True

    def reached(draws: dict[str, Parameters], rhat: float) -> Verdict:
        return reach_verdict(fits, {}, {}, draws, {"gibbs": rhat}, zipmix.Prior())  # type: ignore[arg-type]

    narrow = reached({"cavi": halved, "gibbs": wide}, 1.0)
    assert narrow.widths == {"cavi against gibbs": pytest.approx(0.5, rel=1e-12)}
    assert "0.50 times as wide as those of gibbs (median over parameters): a mean-field q" in narrow.sentences[1]
    fair = reached({"cavi": wide, "gibbs": wide}, 1.0)
    assert "understates" not in " ".join(fair.sentences)
    # A sampler that has not mixed is no measure.
    assert not reached({"cavi": halved, "gibbs": wide}, 2.0).widths


def test_a_method_that_fails_stops_nothing() -> None:
    drawn = zipmix.simulate(60, 2, 2, seed=1)
    compared = compare(drawn.X, 2, methods=("em", "exact"), n_starts=2, n_chains=1)
    assert list(compared.fits) == ["em"]
    assert "rows" in compared.failures["exact"]
    assert any("exact did not run" in sentence for sentence in compared.verdict.sentences)


def test_ctrl_c_before_a_method_has_anything_stops_that_method_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    @wraps(zipmix.METHODS["cavi"])
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(zipmix.METHODS, "cavi", interrupted)
    drawn = zipmix.simulate(60, 2, 2, seed=1)
    compared = compare(drawn.X, 2, methods=("cavi", "em"), n_starts=2, n_chains=1, held_out=0)
    assert list(compared.fits) == ["em"]
    assert "interrupted by the user" in compared.failures["cavi"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ()}, "at least one"),
        ({"methods": ("em", "emm")}, "emm"),
        ({"methods": ("em", "em")}, "once"),
        ({"methods": "em"}, "methods=['em']"),
        ({"n_starts": 2, "n_chains": 4}, "n_starts"),
        ({"n_chains": 0}, "n_chains"),
        ({"seed": -1}, "seed"),
        ({"held_out": None}, "held_out"),
        ({"settings": {"em": 3}}, "must be a dictionary"),
        ({"settings": {"em": {"n_sweeps": 3}}}, "n_sweeps"),
        ({"methods": ("exact",)}, "no method could be run"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments: dict[str, object], words: str) -> None:
    drawn = zipmix.simulate(60, 2, 2, seed=1)
    with pytest.raises(zipmix.InputError, match=re.escape(words)):
        compare(drawn.X, 2, **arguments)  # type: ignore[arg-type]


def test_partitions_are_held_against_known_labels() -> None:
    drawn = zipmix.simulate(60, 4, 2, seed=1, prior=zipmix.Prior(alpha=5.0, f=0.1))
    labels = tuple("ab"[k] for k in drawn.z)
    data = zipmix.Data(drawn.X, ("p", "q", "r", "s"), labels, "drawn")
    compared = compare(data, 2, methods=("em",), n_starts=3, held_out=0)
    table = methods_table(compared)
    found = compared.fits["em"].predict().tolist()
    pairs = [(i, j) for i in range(60) for j in range(i)]
    same = np.array([[labels[i] == labels[j], found[i] == found[j]] for i, j in pairs])
    # The adjusted Rand index from its definition over pairs of rows.
    both, a, b, n = same.all(1).sum(), same[:, 0].sum(), same[:, 1].sum(), len(pairs)
    expected = (both - a * b / n) / ((a + b) / 2 - a * b / n)
    assert compared.summaries[0].label_agreement == pytest.approx(expected)
    assert table.rows[0][table.headers.index("ARI labels")] == f"{expected:.3f}"


def test_without_a_sampler_fewer_starts_than_chains_will_do() -> None:
    drawn = zipmix.simulate(60, 2, 2, seed=1)
    assert compare(drawn.X, 2, methods=("em",), n_starts=2, held_out=0).fits["em"].restarts is not None


def test_a_place_where_nothing_can_be_written_is_refused_before_any_fit() -> None:
    with pytest.raises(zipmix.InputError, match="cannot be written in /proc; choose another place"):
        refuse_folder(Path("/proc/out"), overwrite=False)


def test_digits_and_intervals() -> None:
    assert agreeing_digits(1.0, 1.0) == 16
    assert agreeing_digits(1000.0, 1000.1) == pytest.approx(4, abs=0.01)
    draws = torch.arange(1001, dtype=torch.float64).reshape(7, 143)
    assert interval(draws).tolist() == pytest.approx([25.0, 975.0])


def test_the_folder_is_complete(folder: Path, compared: Comparison) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "comparison.json",
        "figures",
        "fits",
        "report.html",
        "tables",
    ]
    assert {path.stem for path in (folder / "fits").iterdir()} == set(compared.fits)
    names = {"counts", "model", "objective", "restarts", "coclustering", "forest", "zeros", "structural", "rootograms"}
    assert {path.name for path in (folder / "figures").iterdir()} == {f"{n}.{k}" for n in names for k in ("png", "svg")}
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_numbers_in_json_are_those_of_the_fits(folder: Path, compared: Comparison) -> None:
    record = json.loads((folder / "comparison.json").read_text())
    rows = {row["method"]: row for row in record["methods"]}
    assert set(rows) == set(compared.fits)
    assert rows["em"]["log_posterior"] == pytest.approx(compared.fits["em"].objective, rel=1e-13)
    assert np.allclose(rows["gibbs"]["parameters"]["lam"], compared.matched["gibbs"].lam.numpy())
    assert len(rows["em"]["restarts"]["objective"]) == 6
    assert record["data"]["names"][3] == HOSTILE
    assert {"torch", "pyro-ppl", "zipmix"} <= set(record["versions"])


def test_json_has_the_documented_structure(folder: Path) -> None:
    schema = json.loads(files("zipmix").joinpath("schemas/comparison.schema.json").read_text())
    committed = Path(__file__).parent.parent / "results" / "nmes1988"
    for place in (folder, committed):
        record = json.loads((place / "comparison.json").read_text())
        jsonschema.validate(record, schema)
    record["methods"][0].pop("gap")
    with pytest.raises(jsonschema.ValidationError, match="'gap' is a required property"):
        jsonschema.validate(record, schema)


@pytest.mark.parametrize("suffix", [".csv", ".md", ".tex"])
def test_tables_hold_the_numbers(folder: Path, compared: Comparison, suffix: str) -> None:
    text = (folder / "tables" / f"methods{suffix}").read_text()
    for row in compared.summaries:
        assert f"{row.log_posterior:.4f}" in text
        assert row.method.replace("_", r"\_" if suffix == ".tex" else "_") in text
    if suffix == ".tex":
        assert r"\toprule" in text
    columns = (folder / "tables" / f"columns{suffix}").read_text()
    assert columns.count("\n") >= 5


def test_held_out_scores_against_direct_sums() -> None:
    X = zipmix.simulate(40, 3, 2, seed=9).X
    X[0, 1:] = torch.nan
    parts = split(X, share=0.25, seed=1)
    assert parts.rows_MD.shape == (10, 3)
    assert parts.masked_JD.shape == (10, 3)
    lost = parts.masked_JD.isnan() & ~parts.complete_JD.isnan()
    assert lost.sum(1).tolist() == [1] * 10
    assert int(parts.train_ND.isnan().sum() + parts.rows_MD.isnan().sum()) == 10 + 2
    fitted = zipmix.fit(parts.train_ND, 2, "gibbs", n_chains=2, n_warmup=10, n_draws=20)
    scored = score(fitted, parts)
    assert fitted.draws is not None
    draws = [Parameters(*(v.flatten(0, 1)[s] for v in fitted.draws)) for s in range(40)]

    def density(row: torch.Tensor, theta: Parameters) -> float:
        total = 0.0
        for k in range(2):
            product = theta.pi[k].item()
            for d in range(3):
                x = row[d].item()
                if x == x:
                    omega, lam = theta.omega[k, d].item(), theta.lam[k, d].item()
                    product *= omega * stats.poisson.pmf(x, lam) + (1 - omega) * (x == 0)
            total += product
        return total

    rows = [np.log(np.mean([density(row, theta) for theta in draws])) for row in parts.rows_MD]
    cells = [
        np.log(np.mean([density(full, theta) / density(masked, theta) for theta in draws]))
        for full, masked in zip(parts.complete_JD, parts.masked_JD, strict=True)
    ]
    for part, direct in ((scored.rows, rows), (scored.cells, cells)):
        assert part is not None
        assert part.mean == pytest.approx(np.mean(direct), rel=1e-10)
        assert part.error == pytest.approx(np.std(direct, ddof=1) / 10**0.5, rel=1e-10)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        if tag == "script":
            self.scripts += 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert len(page.images) == 9
    assert all((image["alt"] or "")[:5].strip() for image in page.images)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "url(" not in text
    assert "@import" not in text
    assert page.scripts == 1  # a column's hostile name is text
    assert "&lt;script&gt;" in text


def test_a_report_is_written_again_from_its_fits(folder: Path, compared: Comparison) -> None:
    again = read_comparison(folder)
    mine, theirs = as_record(compared), as_record(again)
    for record in (mine, theirs):
        for row in record["methods"]:
            row["settings"].pop("start", None)
    assert mine == theirs


def test_nothing_of_the_users_is_replaced(compared: Comparison, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(zipmix.InputError, match="exists already"):
        write_report(compared, folder)
    own = tmp_path / "thesis"
    own.mkdir()
    (own / "chapter.tex").write_text("x")
    with pytest.raises(zipmix.InputError, match="holds no comparison"):
        write_report(compared, own, overwrite=True)
    assert (own / "chapter.tex").read_text() == "x"


@pytest.mark.usefixtures("without_figures")
def test_a_report_that_fails_leaves_the_old_one(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "kept"
    write_report(compared, place)
    before = (place / "report.html").read_bytes()

    def fail(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr("zipmix.comparison.report.render", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(compared, place, overwrite=True)
    assert (place / "report.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.usefixtures("without_figures")
def test_other_files_in_the_folder_stay(compared: Comparison, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    write_report(compared, place)
    (place / "notes.txt").write_text("mine")
    (place / "figures" / "gone.png").write_text("of an earlier comparison")
    write_report(compared, place, overwrite=True)
    assert (place / "notes.txt").read_text() == "mine"
    assert not (place / "figures" / "gone.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_is_not_replaced_by_a_folder(compared: Comparison, tmp_path: Path) -> None:
    (tmp_path / "counts.csv").write_text("mine")
    with pytest.raises(zipmix.InputError, match="is a file"):
        write_report(compared, tmp_path / "counts.csv", overwrite=True)
    assert (tmp_path / "counts.csv").read_text() == "mine"


@pytest.mark.usefixtures("without_figures")
def test_a_move_that_fails_leaves_the_old_report(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    place = tmp_path / "kept"
    write_report(compared, place)
    before = {path.relative_to(place): path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    move = os.replace

    def fail(source: Path, target: Path) -> None:
        if target == place / "report.html" and source.parent.name == "new":
            raise OSError("no space left")
        move(source, target)

    monkeypatch.setattr("zipmix.comparison.report.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(compared, place, overwrite=True)
    after = {path.relative_to(place): path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.usefixtures("without_figures")
def test_a_folder_without_its_fits_says_how_to_make_them(compared: Comparison, tmp_path: Path) -> None:
    place = tmp_path / "clone"
    write_report(compared._replace(command="zipmix compare x.csv -k 2"), place)
    (place / "fits" / "cavi.nc").unlink()
    with pytest.raises(zipmix.InputError, match=r"fits/cavi.nc.*`zipmix compare x.csv -k 2`"):
        read_comparison(place)


@pytest.mark.usefixtures("without_figures")
def test_a_report_written_again_keeps_where_it_was_made(compared: Comparison, tmp_path: Path) -> None:
    write_report(compared._replace(machine="an older one", versions={"torch": "1.0"}), tmp_path / "old")
    again = read_comparison(tmp_path / "old")
    assert again.machine == "an older one"
    assert again.versions == {"torch": "1.0"}


def test_the_command_is_the_call_with_its_arguments(compared: Comparison) -> None:
    assert compared.command.startswith("zipmix.compare(X, 2, methods=('em', 'pyro_map', 'cavi', 'pyro_svi', 'gibbs'), ")
    assert "n_starts=6, n_chains=2" in compared.command


def test_the_verdict_draws_no_conclusion_from_methods_that_were_stopped(compared: Comparison) -> None:
    from dataclasses import replace

    from zipmix.comparison import verdict

    em, pyro_map = compared.fits["em"], compared.fits["pyro_map"]
    for converged, words in ((True, "several modes"), (False, "nothing follows")):
        stopped = replace(pyro_map, objective=pyro_map.objective - 1.0, converged=converged)
        fits = {"em": em, "pyro_map": stopped}
        points = {name: fitted.parameters for name, fitted in fits.items()}
        assert words in verdict.reach_verdict(fits, {}, points, {}, {}, compared.prior).sentences[1]


def test_drawing_leaves_the_users_backend_alone(compared: Comparison, tmp_path: Path) -> None:
    before = matplotlib.get_backend(), dict(matplotlib.rcParams)
    write_report(compared, tmp_path / "again")
    assert (matplotlib.get_backend(), dict(matplotlib.rcParams)) == before


def test_a_single_component_and_missing_cells_make_a_report(tmp_path: Path) -> None:
    X = zipmix.simulate(30, 3, 1, seed=2).X
    X[::3, 0] = torch.nan
    compared = compare(X, 1, methods=("em", "gibbs"), n_starts=1, n_chains=1, settings={"gibbs": {"n_draws": 20}})
    write_report(compared, tmp_path / "one")
    assert "10 missing cells" in (tmp_path / "one" / "report.html").read_text()


def test_a_column_without_cells_and_one_of_large_counts_make_a_report(tmp_path: Path) -> None:
    X = zipmix.simulate(30, 3, 2, seed=2).X
    X[:, 0] = torch.nan
    X[:, 1] *= 1_000_000
    compared = compare(X, 2, methods=("cavi", "em"), n_starts=4, held_out=0, settings={"cavi": {"n_draws": 20}})
    write_report(compared, tmp_path / "odd")
    text = (tmp_path / "odd" / "report.html").read_text()
    assert "30 missing cells" in text
    # The starts that are shown are those of the reference, whatever ran first.
    assert "Each line is one start of em." in text


def test_a_method_without_iterations_has_no_figure_of_them(tmp_path: Path) -> None:
    compared = compare(zipmix.simulate(4, 2, 1, seed=0).X, 2, methods=("exact",), n_starts=2, n_chains=1)
    write_report(compared, tmp_path / "exact")
    assert not (tmp_path / "exact" / "figures" / "objective.png").exists()
    assert "Objective against time" not in (tmp_path / "exact" / "report.html").read_text()


def test_too_few_draws_are_not_judged() -> None:
    settings = {"gibbs": {"n_warmup": 2, "n_draws": 3}}
    compared = compare(
        zipmix.simulate(4, 2, 1, seed=0).X, 1, methods=("gibbs",), n_starts=2, n_chains=2, settings=settings
    )
    assert compared.summaries[0].ess_per_second is None
    assert compared.summaries[0].rhat_matched is None


def test_a_table_too_small_to_hold_rows_out_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from zipmix.comparison import comparison

    labels = []
    inner = comparison.run_methods

    def counted(*arguments: object, **named: object) -> object:
        labels.append(named["label"])
        return inner(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(comparison, "run_methods", counted)
    compared = compare(zipmix.simulate(4, 2, 1, seed=0).X, 1, methods=("em",), n_starts=2, n_chains=1)
    assert labels == ["compare"]
    assert compared.scores == {}


def test_a_second_fit_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from zipmix.comparison import runs

    inner = runs.fit

    def failing(X: torch.Tensor, *arguments: object, **named: object) -> object:
        if len(X) < 40:
            raise RuntimeError("too few rows")
        return inner(X, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "fit", failing)
    compared = compare(zipmix.simulate(40, 2, 1, seed=0).X, 1, methods=("em",), n_starts=2, n_chains=1)
    assert "too few rows" in compared.failures["em (held out)"]


def test_signs_are_printed_by_latex() -> None:
    table = TextTable("Signs", ("column", "k > 0.7"), [("a<b|c", "1 ± 2")])
    text = as_latex(table)
    assert "k $>$ 0.7" in text
    assert r"a$<$b$|$c & 1 $\pm$ 2" in text
