"""The command line: `zipmix fit`, `compare`, `report`, `simulate`, `check`, `coursework`.

Heavy imports stand inside the commands, so that `zipmix --help` answers at once. Invalid input ends with one sentence
on stderr and exit status 2.
"""

import ast
import os
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zipmix.checker.command import register

if TYPE_CHECKING:
    from zipmix.inference.result import Fit
    from zipmix.models.parameters import Prior

UNUSABLE = 2
INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Each command has examples: [bold]zipmix fit --help[/bold].",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zipmix {version('zipmix')}")
        raise typer.Exit


@app.callback()
def options(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Fit, check and compare the zero-inflated Poisson mixture."""


Table = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="nmes1988, digits, or a file: .csv, .npy, .pkl, .parquet, .mtx, .h5ad.", show_default=False
    ),
]
TableOrStudy = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="nmes1988, digits, a file (.csv, .npy, .pkl, .parquet, .mtx, .h5ad), or a study of many runs (.toml).",
        show_default=False,
    ),
]
Components = Annotated[int, typer.Option("--components", "-k", help="K, number of components.", show_default=False)]
PriorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prior",
        metavar="NAME=VALUE",
        help="Hyperparameter alpha, a, b, e or f, as often as needed; --prior flat: maximum likelihood.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all randomness.")]


@app.command("fit", epilog="[bold]zipmix fit nmes1988 -k 3 --set n_starts=50 --save fit.nc --rows rows.csv[/bold]")
def fit_command(
    data: Table,
    components: Components,
    method: Annotated[str, typer.Option("--method", "-m", help="Method of inference.")] = "em",
    prior: PriorOption = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Setting of the method, as often as needed."),
    ] = None,
    seed: Seed = 0,
    save: Annotated[Path | None, typer.Option(help="Write the fit as NetCDF (.nc).")] = None,
    rows: Annotated[Path | None, typer.Option(help="Write component and responsibilities of every row as CSV.")] = None,
    impute: Annotated[Path | None, typer.Option(help="Write the table with missing cells filled as CSV.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Fit the mixture by one method and print its components."""
    import zipmix
    from zipmix.outputs import fit_summary, refuse_files, write_csv

    refuse_files((save, rows, impute), overwrite=overwrite)
    table = zipmix.load_data(data)
    settings: dict[str, Any] = {"progress": True} | assignments(setting or [], "--set")
    fitted = _run(table, components, method, prior=parse_prior(prior or []), seed=seed, settings=settings)
    from rich.console import Console

    Console().print(fit_summary(fitted))
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        fitted.save(save, overwrite=True)
    if rows is not None:
        write_csv(rows, _rows(fitted, table.labels))
    if impute is not None:
        write_csv(impute, _frame(fitted.impute(), table.names, table.row_names))
    for path in (save, rows, impute):
        if path is not None:
            typer.echo(f"wrote {path}")


@app.command("compare", epilog="[bold]zipmix compare nmes1988 -k 3 --output results/nmes1988[/bold]")
def compare_command(
    context: typer.Context,
    data: TableOrStudy,
    components: Annotated[
        int | None, typer.Option("--components", "-k", help="K, number of components.", show_default=False)
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="Method to run, as often as needed; a default selection where left out."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; results/NAME where left out.")
    ] = None,
    prior: PriorOption = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.NAME=VALUE", help="Setting of one method, as often as needed."),
    ] = None,
    seed: Seed = 0,
    starts: Annotated[int, typer.Option(min=1, help="Starts of EM and CAVI.")] = 50,
    chains: Annotated[int, typer.Option(min=1, help="Chains of the samplers.")] = 4,
    held_out: Annotated[float, typer.Option(help="Share of rows that a second fit is scored on; 0: none.")] = 0.1,
    budget: Annotated[
        float | None, typer.Option(help="Seconds after which a fit ends with what it has.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
) -> None:
    """Run the methods on the same data from the same starts and write one folder with a report.

    A study file (.toml) names data sets, numbers of components and seeds; it goes on where it was stopped.
    """
    if Path(data).suffix.lower() == ".toml":
        _compare_study(context, data, output, overwrite=overwrite)
        return
    import zipmix
    from zipmix.comparison.comparison import DEFAULT_METHODS
    from zipmix.comparison.report import write_report
    from zipmix.outputs import comparison_table, refuse_folder

    if components is None:
        raise zipmix.InputError("-k is missing: give the number of components, as in -k 3, or a study file (.toml).")
    folder = output or Path("results") / Path(data).stem
    refuse_folder(folder, overwrite=overwrite)
    compared = zipmix.compare(
        zipmix.load_data(data),
        components,
        methods=method or DEFAULT_METHODS,
        prior=parse_prior(prior or []),
        settings=_by_method(assignments(setting or [], "--set")),
        seed=seed,
        n_starts=starts,
        n_chains=chains,
        held_out=held_out,
        budget=budget,
        progress=True,
    )
    compared = compared._replace(command=shlex.join(["zipmix", *sys.argv[1:]]))
    from rich.console import Console

    Console().print(comparison_table(compared))
    write_report(compared, folder, overwrite=overwrite)
    typer.echo(f"wrote {folder / 'report.html'}")


@app.command("report", epilog="[bold]zipmix report results/nmes1988[/bold]")
def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder that `zipmix compare` wrote.", show_default=False)],
) -> None:
    """Write the report of a comparison, or the summary of a study, again: nothing is fitted."""
    if (folder / "study.json").is_file():
        from zipmix.study import rewrite_study

        typer.echo(f"wrote {rewrite_study(folder)}")
        return
    from zipmix.comparison.report import read_comparison, write_report

    typer.echo(f"wrote {write_report(read_comparison(folder), folder, overwrite=True)}")


@app.command("simulate", epilog="[bold]zipmix simulate 500 8 3 counts.csv --truth truth.nc[/bold]")
def simulate_command(
    n: Annotated[int, typer.Argument(metavar="N", help="Rows.", show_default=False)],
    features: Annotated[int, typer.Argument(metavar="D", help="Columns.", show_default=False)],
    components: Annotated[int, typer.Argument(metavar="K", help="Components.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="CSV file to write.", show_default=False)],
    prior: PriorOption = None,
    seed: Seed = 0,
    truth: Annotated[
        Path | None, typer.Option(help="Write what was drawn (z, b, pi, omega, lam) as NetCDF (.nc).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Draw parameters and counts from the model."""
    import zipmix
    from zipmix.counts.table import default_names
    from zipmix.counts.whole_file import write_whole
    from zipmix.inference.datasets import save_simulation
    from zipmix.outputs import refuse_files, write_csv

    refuse_files((file, truth), overwrite=overwrite)
    drawn = zipmix.simulate(n, features, components, prior=parse_prior(prior or []), seed=seed)
    write_csv(file, _frame(drawn.X, default_names(features)))
    typer.echo(f"wrote {file}")
    if truth is not None:
        write_whole(truth, lambda place: save_simulation(drawn, place))
        typer.echo(f"wrote {truth}")


register(app)


def main() -> None:
    """Runs the command line; what cannot be used ends with a sentence and exit status 2."""
    # Threads that wait by spinning make every product ten times slower where another process wants their core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except Exception as error:
        from zipmix.counts.checks import InputError

        if not isinstance(error, InputError):
            raise
        typer.echo(f"zipmix: {error}", err=True)
        sys.exit(UNUSABLE)


def _compare_study(context: typer.Context, path: str, output: Path | None, *, overwrite: bool) -> None:
    from zipmix.counts.checks import InputError
    from zipmix.study import run_study

    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in ("data", "output", "overwrite") and source is not None and source.name != "DEFAULT":
            raise InputError(f"--{name.replace('_', '-')} does not go with a study; write it into {path}.")
    try:
        page = run_study(path, output, overwrite=overwrite, progress=True)
    except KeyboardInterrupt:
        typer.echo("zipmix: stopped; what is done is kept, and the same command goes on from there.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(f"wrote {page}")


def _run(table: Any, components: int, method: str, *, prior: "Prior", seed: int, settings: dict[str, Any]) -> "Fit":
    from dataclasses import replace

    import zipmix

    return replace(
        zipmix.fit(table.X, components, method, prior=prior, seed=seed, **settings),
        names=table.names,
        row_names=table.row_names,
    )


def assignments(texts: list[str], option: str) -> dict[str, Any]:
    """NAME=VALUE texts as a dictionary; values are Python literals, or text.

    Raises:
        InputError: no "=" in a text, or the same name twice.
    """
    from zipmix.counts.checks import InputError

    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            example = "alpha=2" if option == "--prior" else "n_starts=50"
            raise InputError(f"{option} must be NAME=VALUE, got {text!r}; write {option} {example}.")
        if name in values:
            raise InputError(f"{option} names {name!r} twice; give it once.")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            values[name] = value
    return values


def parse_prior(texts: list[str]) -> "Prior":
    """The prior from NAME=VALUE texts, or from "flat".

    Raises:
        InputError: an unknown name or a value that is no number.
    """
    from zipmix.counts.checks import InputError
    from zipmix.models.parameters import FLAT, Prior

    if texts == ["flat"]:
        return FLAT
    values = assignments(texts, "--prior")
    for name, value in values.items():
        if name not in Prior._fields:
            raise InputError(f"--prior must name one of {', '.join(Prior._fields)}; got {name!r}.")
        if isinstance(value, (str, bool)):
            raise InputError(f"--prior {name} must be a number, or numbers with commas for alpha; got {value!r}.")
    return Prior(**values)


def _by_method(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    from zipmix.counts.checks import InputError

    nested: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        method, dot, own = name.partition(".")
        if not dot or not own:
            raise InputError(f"--set must be METHOD.NAME=VALUE, got {name!r}; write --set gibbs.n_draws=2000.")
        nested.setdefault(method, {})[own] = value
    return nested


def _frame(X_ND: Any, names: tuple[str, ...], row_names: tuple[str, ...] | None = None) -> Any:
    """The table as load_data reads it: names of rows stand in a first column without a name."""
    import pandas as pd

    index = None if row_names is None else pd.Index(row_names, name="")
    frame = pd.DataFrame(X_ND.numpy(), index=index, columns=list(names))
    whole = frame.columns[((frame % 1 == 0) | frame.isna()).all()]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def _rows(fitted: "Fit", labels: tuple[str, ...] | None) -> Any:
    import pandas as pd

    R_NK = fitted.responsibilities()
    index = None if fitted.row_names is None else list(fitted.row_names)
    frame = pd.DataFrame(R_NK.numpy(), index=index, columns=[f"r{k}" for k in range(fitted.n_components)])
    frame.insert(0, "component", R_NK.argmax(1).numpy())
    if labels is not None:
        frame.insert(1, "label", list(labels))
    return frame.rename_axis("row")
