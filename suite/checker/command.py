"""The commands `zipmix check` and `zipmix coursework`."""

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

ALL_RIGHT, WRONG, NOTHING_CHECKED = 0, 1, 2


def check_command(
    file: Annotated[
        Path | None, typer.Argument(help="Python file or notebook with the functions to check.", show_default=False)
    ] = None,
    template: Annotated[
        bool, typer.Option("--template", help="Write an empty solution with docstrings: to FILE, or to the terminal.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Try fewer problems.")] = False,
    reveal: Annotated[bool, typer.Option("--reveal", help="Show the right numbers beside the wrong ones.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the report as JSON.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn problems.")] = 0,
    time_limit: Annotated[float, typer.Option(help="Seconds that one call may take.")] = 10.0,
    memory_limit: Annotated[float, typer.Option(help="GiB that the solution may use.")] = 2.0,
) -> None:
    """Say which functions of a derivation are right, and which mistake a wrong one makes.

    Exit status: 0 all right, 1 something wrong, 2 nothing to check or not readable.
    """
    if template:
        _write_template(file)
        return
    if file is None:
        _refuse("name a Python file or a notebook to check, or write an empty one with --template")
    from zipmix.checker.engine import check
    from zipmix.counts.checks import InputError

    try:
        report = check(file, quick=quick, reveal=reveal, seed=seed, time_limit=time_limit, memory_limit=memory_limit)
    except InputError as error:
        _refuse(str(error))
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    else:
        from rich.console import Console

        Console().print(report)
    if all(item.is_empty for item in report.items.values()):
        raise typer.Exit(NOTHING_CHECKED)
    raise typer.Exit(ALL_RIGHT if report.passed else WRONG)


def coursework_command(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if it does not exist.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 617,
) -> None:
    """Write data of the assignment's shape: data.pkl, hyperparams.pkl and test_data.pkl.

    Where these files are there already they are left as they are. What they hold is read and shown, by an unpickler
    that admits tensors and plain containers only.
    """
    from zipmix.counts.checks import InputError
    from zipmix.coursework import FILES, read_data, write_data

    there = all((folder / name).is_file() for name in FILES)
    try:
        if not there:
            write_data(folder, seed=seed)
        files = read_data(folder)
    except InputError as error:
        _refuse(str(error))
    for name, content in zip(FILES, files, strict=True):
        held = ", ".join(
            f"{key} {tuple(value.shape) if value.ndim else f'{value:g}'}" for key, value in content.items()
        )
        typer.echo(f"{'read' if there else 'wrote'} {folder / name}: {held}")


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command("check", epilog="[bold]zipmix check solution.py --reveal[/bold]")(check_command)
    app.command("coursework", epilog="[bold]zipmix coursework data/[/bold]")(coursework_command)


def _write_template(file: Path | None) -> None:
    from importlib.resources import files

    text = (files("zipmix") / "templates" / "solution.py").read_text(encoding="utf-8")
    if file is None:
        typer.echo(text, nl=False)
        return
    try:
        with file.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        _refuse(f"{file} exists already; choose another name")
    except OSError as error:
        _refuse(f"{file} cannot be written ({error.strerror})")
    typer.echo(f"wrote {file}")


def _refuse(sentence: str) -> NoReturn:
    typer.echo(f"zipmix: {sentence.rstrip('.')}.", err=True)
    raise typer.Exit(NOTHING_CHECKED)
