"""What a check found: as an object for tests, a table for terminals and notebooks, and JSON."""

import io
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: str  # "wrong": an answer that is not right; "error": none that can be judged; "empty": not written yet
    sentence: str  # the property that fails, or the error, as a sentence
    where: str  # file or cell, and line
    output: str = ""  # which output, e.g. omega_KD
    formula: str = ""  # the property as a formula with its equation numbers
    index: tuple[int, ...] = ()  # of the worst entry
    difference: float = 0.0  # relative, at that entry; infinite for NaN and the like
    off: str = ""  # the difference as a phrase
    got: float | None = None  # with reveal only
    expected: float | None = None  # with reveal only
    sizes: tuple[int, int, int] | None = None  # N, D, K of the smallest problem that shows it
    kind_of_problem: str = ""
    mistake: str | None = None  # name in the catalogue
    mistake_sentence: str = ""
    inputs: dict[str, Any] = field(default_factory=dict, repr=False)  # arguments of that problem

    @property
    def lines(self) -> tuple[str, ...]:
        """The finding in lines of text."""
        if self.kind != "wrong":
            first = f"{self.sentence}" + (f", at {self._sizes()}" if self.sizes else "")
            return (first, *self._named())
        entry = self.output + (f"[{', '.join(map(str, self.index))}]" if self.index else "")
        lines = [
            f"{entry} {self.off}, at {self._sizes()}",
            f"must hold: {self.sentence}",
            f"  {self.formula}",
        ]
        if self.got is not None and self.expected is not None:
            lines.insert(1, f"got {self.got:.6g}, expected {self.expected:.6g}")
        return (*lines, *self._named())

    def _named(self) -> tuple[str, ...]:
        return (f"the mistake: {self.mistake_sentence} [{self.mistake}]",) if self.mistake else ()

    def _sizes(self) -> str:
        assert self.sizes is not None
        N, D, K = self.sizes
        return f"N = {N}, D = {D}, K = {K}" + (f" ({self.kind_of_problem})" if self.kind_of_problem else "")


@dataclass(frozen=True)
class ItemReport:
    """What was found about one function."""

    name: str
    question: str  # of the coursework
    passed: bool
    where: str  # file or cell, and line of the function
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]  # what is no mistake, but worth knowing
    n_problems: int
    difference: float  # largest relative difference from the right answers

    @property
    def verdict(self) -> str:
        """right, WRONG, or empty where nothing is written yet."""
        if self.is_empty:
            return "empty"
        return "right" if self.passed else "WRONG"

    @property
    def is_empty(self) -> bool:
        """Whether the function is a stub that raises NotImplementedError."""
        return any(finding.kind == "empty" for finding in self.findings)


@dataclass(frozen=True, repr=False)
class Report:
    """What was found about a solution; `report["m_step"]` is that of one function."""

    source: str
    items: dict[str, ItemReport]
    failures: tuple[Finding, ...]  # of the file itself
    notes: tuple[str, ...]
    quick: bool
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether everything that was found in the solution is right."""
        return not self.failures and bool(self.items) and all(item.passed for item in self.items.values())

    def __getitem__(self, name: str) -> ItemReport:
        """The report of one function.

        Raises:
            KeyError: the solution has no such function.
        """
        if name not in self.items:
            raise KeyError(f"{self.source} has no {name} that was checked; checked were {', '.join(self.items)}.")
        return self.items[name]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain containers, fit for JSON: no NaN and no infinity in it."""
        return _finite({"passed": self.passed, **asdict(self)})

    @property
    def verdict(self) -> str:
        """The whole report in one line."""
        return f"{self._count} ({self.seconds:.1f} s{', quick' if self.quick else ''})"

    @property
    def _count(self) -> str:
        n_right = sum(item.passed for item in self.items.values())
        return f"{n_right} of {len(self.items)} functions right"

    def __repr__(self) -> str:
        """The count of right functions; print(report) shows all."""
        return f"<Report on {self.source}: {self._count}>"

    def __rich__(self) -> "Group":
        """A table for the terminal."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for item in self.items.values():
            notes = "; ".join(item.notes)
            detail = notes if item.passed else ", ".join(part for part in (item.where, notes) if part)
            style = "dim" if item.is_empty else "green" if item.passed else "bold red"
            table.add_row(item.name, item.question, Text(item.verdict, style=style), Text(detail))
        blocks: list[Any] = [Text(f"{self.source}: {self.verdict}", style="bold"), table]
        named = [
            (item.name, finding) for item in self.items.values() for finding in item.findings if finding.kind != "empty"
        ]
        for name, finding in [(self.source, failure) for failure in self.failures] + named:
            place = f" ({finding.where})" if finding.where else ""
            first, *rest = finding.lines
            blocks.append(Text(f"\n{name}{place}: {first}"))
            blocks.extend(
                Padding(Text(line, style="yellow" if line.startswith("the mistake") else ""), (0, 0, 0, 2))
                for line in rest
            )
        blocks.extend(Text(f"\n{self.source} {note}") for note in self.notes)
        return Group(*blocks)

    def __str__(self) -> str:
        """The table without colours."""
        from rich.console import Console

        console = Console(file=io.StringIO(), width=110, color_system=None)
        console.print(self)
        file = console.file
        assert isinstance(file, io.StringIO)
        return file.getvalue()

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        from jinja2 import Environment, PackageLoader

        environment = Environment(loader=PackageLoader("zipmix", "templates"), autoescape=True)
        return environment.get_template("check.html").render(report=self)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
