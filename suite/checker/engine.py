"""check: asks every function of a solution about drawn problems and holds the answers against the Pyro program."""

import difflib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.checker.catalogue import BY_NAME
from zipmix.checker.item import Answers, Item, Malformed
from zipmix.checker.items import ITEMS
from zipmix.checker.items_steps import EM, LONG, SINGLE, em_problems
from zipmix.checker.naming import name_mistake
from zipmix.checker.problems import Problem, smallest, spread
from zipmix.checker.report import Finding, ItemReport, Report
from zipmix.checker.source import from_functions, read_source
from zipmix.checker.student import Limits
from zipmix.checker.worker import Answer, Found, Worker
from zipmix.counts.checks import InputError

# Calls that may be spent on making one problem smaller.
SHRINKING_CALLS = 60


def check(
    solution: str | Path | ModuleType | Mapping[str, Callable[..., Any]] | None = None,
    *,
    quick: bool = False,
    reveal: bool = False,
    seed: int = 0,
    time_limit: float = 10.0,
    memory_limit: float = 2.0,
    **functions: Callable[..., Any],
) -> Report:
    """Says of each function of a derivation whether it is right, and if not, where and which mistake it is.

    Functions have the names and arguments of `zipmix.coursework` (`zipmix check --template` writes them out). They run
    in a process of their own; nothing that they do ends or changes this one.

    Args:
        solution: a Python file, a notebook, a module, or functions by name.
        quick: whether to try fewer problems.
        reveal: whether the report may show the right numbers.
        seed: of the drawn problems.
        time_limit: seconds that one call, or running the file, may take.
        memory_limit: GiB that the solution may use.
        **functions: functions by name: check(e_step=my_e_step, m_step=my_m_step).
    Returns:
        The report; `report.passed`, `report["m_step"].passed`.
    Raises:
        InputError: no such file, not Python, or nothing in it that is checked.
        TypeError: a keyword that names no function that is checked.
    """
    began = time.perf_counter()
    for name, function in functions.items():
        if name not in ITEMS:
            near = difflib.get_close_matches(name, ITEMS, n=1)
            raise TypeError(
                f"unknown function {name!r}; check takes {', '.join(ITEMS)}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
        if not callable(function):
            raise InputError(f"{name} must be a function, got {type(function).__name__}.")
    if not time_limit > 0 or not memory_limit > 0:
        raise InputError(
            f"time_limit and memory_limit must be greater than 0, got {time_limit:g} and {memory_limit:g}."
        )
    source = _source(solution, functions)
    worker = Worker(
        source,
        {item.name: (item.arguments, item.optional) for item in ITEMS.values()},
        Limits(time_limit, memory_limit),
    )
    try:
        _require_functions(source.name, worker)
        with _one_thread():
            drawn, runs = spread(quick=quick, seed=seed), em_problems(seed)
            reports = {
                name: _Examiner(worker, item, worker.loaded.functions[name], reveal).report(
                    runs if item is EM else drawn
                )
                for name, item in ITEMS.items()
                if name in worker.loaded.functions
            }
        error = worker.loaded.error
        failures = (Finding("error", error[1], error[0]),) if error else ()
        notes = (f"prints {worker.loaded.printed!r} when it is run",) if worker.loaded.printed else ()
        return Report(source.name, reports, failures, notes, quick, time.perf_counter() - began)
    finally:
        worker.close()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors here are tiny: threads that wait for each other cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _source(solution: Any, functions: Mapping[str, Callable[..., Any]]) -> Any:
    if solution is None and not functions:
        raise InputError("solution: there is nothing to check; name a file or pass functions: check(m_step=...).")
    if isinstance(solution, (str, Path)):
        if functions:
            raise InputError("solution: check a file or functions at hand, not both in one call.")
        return read_source(solution)
    name = "functions"
    given: Mapping[str, Any] = {}
    if isinstance(solution, ModuleType):
        name, given = solution.__name__, vars(solution)
    elif isinstance(solution, Mapping):
        given = solution
    elif solution is not None:
        raise InputError(
            f"solution must be a path, a module or a dictionary of functions, got {type(solution).__name__}; "
            "functions are passed by name: check(m_step=...)."
        )
    known = {key: value for key, value in given.items() if key in ITEMS and callable(value)}
    return from_functions(known | dict(functions), name)


def _require_functions(name: str, worker: Worker) -> None:
    """Refuses a solution in which there is nothing to check."""
    loaded = worker.loaded
    if loaded.functions:
        return
    if loaded.error:
        raise InputError(f"solution: {': '.join(part for part in loaded.error if part)}; no function is left to check.")
    defines = f"it defines {', '.join(loaded.others[:6])}" if loaded.others else "it defines none"
    names = [other.split(" ")[0] for other in loaded.others]
    near = [(other, close[0]) for other in names if (close := difflib.get_close_matches(other.lower(), ITEMS, n=1))]
    hint = f" Is {near[0][0]} meant as {near[0][1]}?" if near else ""
    raise InputError(
        f"solution: {name} has no function that is looked for; {defines}. Looked for are {', '.join(ITEMS)}.{hint}"
    )


class Miss(NamedTuple):
    """The worst entry of one output on one problem."""

    output: str
    difference: float  # relative; infinite for NaN or an infinity that does not belong
    excess: float  # difference / what rounding allows
    entry: tuple[int, ...]
    got: float
    expected: float


class Trial(NamedTuple):
    """One call on one problem."""

    problem: Problem
    answer: Answer
    got: Answers | None  # None where the call failed
    failure: str  # sentence, "" where it did not
    misses: tuple[Miss, ...]  # outputs that are wrong
    difference: float  # largest over all outputs

    @property
    def wrong(self) -> bool:
        return bool(self.failure or self.misses)


class _Examiner:
    """Asks one function about problems, in one way of asking."""

    def __init__(self, worker: Worker, item: Item, found: Found, reveal: bool):
        self._worker, self._item, self._found, self._reveal = worker, item, found, reveal
        self._own = False  # the project's functions replace the solution's other ones
        self._single = False  # tensors are passed in float64

    def report(self, problems: Sequence[Problem]) -> ItemReport:
        """All problems that suit the item, and what they show."""
        item = self._item
        if self._found.signature:
            return self._summary((), (Finding("error", self._found.signature, self._found.where),))
        suited = [problem for problem in problems if item.fits(problem)]
        trials = self._all(suited)
        replaced = any(trial.answer.substituted for trial in trials)
        if any(trial.wrong for trial in trials) and replaced:
            # A solution may split the work between its functions in its own way.
            self._own = True
            mine = self._all(suited)
            if any(trial.wrong for trial in mine):
                self._own = False
            else:
                trials = mine
        return self._summary(trials, tuple(self._findings(trials)))

    def _all(self, problems: Sequence[Problem]) -> list[Trial]:
        trials = [self._try(problems[0])]
        if trials[0].answer.error_name not in ("", "timeout", "ended") and not self._single:
            # Mixing in tensors of torch's default type fails on float64; such a solution is called in float32.
            self._single = True
            again = self._try(problems[0])
            self._single = not again.answer.error
            trials = [again] if self._single else trials
        for problem in problems[1:]:
            if trials[-1].answer.error_name in ("timeout", "ended", "NotImplementedError"):
                break
            trials.append(self._try(problem))
        return trials

    def _try(self, problem: Problem, *, quiet: bool = False) -> Trial:
        item = self._item
        rounding = problem.kind == SINGLE
        answer = self._worker.call(
            item.name,
            item.ask(problem),
            points=item.points(problem),
            own=self._own,
            noisy=rounding and not quiet,
            single=self._single or rounding,
        )
        if answer.error:
            return Trial(problem, answer, None, answer.error, (), 0.0)
        try:
            got = item.read(problem, answer.value)
        except Malformed as error:
            return Trial(problem, answer, None, str(error), (), 0.0)
        with torch.random.fork_rng(devices=[]):
            right = item.right(problem, got)
        compared = [_compare(item, problem, name, got[name], expected) for name, expected in right.items()]
        misses = tuple(miss for miss in compared if miss.excess > 1)
        return Trial(problem, answer, got, "", misses, max((miss.difference for miss in compared), default=0.0))

    def _findings(self, trials: Sequence[Trial]) -> list[Finding]:
        if trials[0].answer.error_name == "NotImplementedError":
            return [Finding("empty", trials[0].failure, trials[0].answer.where)]
        findings = []
        failed = next((trial for trial in trials if trial.failure), None)
        if failed is not None:
            findings.append(self._failure(failed))
        for output in self._item.properties:
            missed = [(trial, miss) for trial in trials for miss in trial.misses if miss.output == output]
            if missed:
                worst, _ = max(missed, key=lambda pair: pair[1].excess)
                finding = self._wrong(output, worst, trials)
                # A mistake is reported once, by the first output that shows it.
                if finding.mistake is None or finding.mistake not in [known.mistake for known in findings]:
                    findings.append(finding)
        return findings

    def _failure(self, failed: Trial) -> Finding:
        name, item = failed.answer.error_name, self._item
        mistake = None
        rounding = failed.problem.kind == SINGLE and name not in ("timeout", "ended", "")
        if rounding and (name == "AssertionError" or not self._try(failed.problem, quiet=True).wrong):
            mistake = BY_NAME["falls_by_rounding_refused"]
        problem = failed.problem
        if name not in ("timeout", "ended") and problem.kind not in (LONG, SINGLE):
            problem = self._shrink(problem, lambda trial: bool(trial.failure) and trial.answer.error_name == name)
            # The sentence is that of the problem shown: shapes in it are those of its sizes.
            failed = self._try(problem)
        return Finding(
            "error",
            failed.failure,
            failed.answer.where or self._found.where,
            sizes=problem.sizes,
            kind_of_problem=problem.kind,
            mistake=mistake.name if mistake else None,
            mistake_sentence=mistake.sentence if mistake else "",
            inputs=_inputs(item, problem),
        )

    def _wrong(self, output: str, worst: Trial, trials: Sequence[Trial]) -> Finding:
        item = self._item

        def shows(trial: Trial) -> bool:
            return any(miss.output == output for miss in trial.misses)

        problem = worst.problem
        # Where EM has little to hold on to it may need longer to end: that is no mistake.
        if problem.kind not in (LONG, SINGLE):
            problem = self._shrink(problem, shows)
            worst = self._try(problem)
        miss = next(miss for miss in worst.misses if miss.output == output)
        found = [(trial.problem, trial.got) for trial in trials if trial.got is not None]
        if item is EM:
            found = [(trial.problem, trial.got) for trial in trials if trial.got is not None and shows(trial)]
        single = self._single or _is_single(worst.answer.value)
        mistake = name_mistake(item, output, found, single=single)
        prop = item.properties[output]
        return Finding(
            "wrong",
            prop.words,
            self._found.where,
            output=output,
            formula=prop.formula,
            index=miss.entry[: prop.axes],
            difference=self._shown(miss.difference),
            off=_in_words(miss),
            got=miss.got if self._reveal else None,
            expected=miss.expected if self._reveal else None,
            sizes=problem.sizes,
            kind_of_problem=problem.kind,
            mistake=mistake.name if mistake else None,
            mistake_sentence=mistake.sentence if mistake else "",
            inputs=_inputs(item, problem),
        )

    def _shrink(self, problem: Problem, shows: Callable[[Trial], bool]) -> Problem:
        calls = 0

        def still_wrong(smaller: Problem) -> bool:
            nonlocal calls
            calls += 1
            return calls <= SHRINKING_CALLS and self._item.fits(smaller) and shows(self._try(smaller))

        return smallest(problem, still_wrong)

    def _summary(self, trials: Sequence[Trial], findings: tuple[Finding, ...]) -> ItemReport:
        notes = []
        printed = next((trial.answer.printed for trial in trials if trial.answer.printed), "")
        if printed:
            notes.append(f"prints {printed!r}")
        if self._own:
            notes.append("is right together with the solution's other functions, not with those of zipmix.coursework")
        return ItemReport(
            self._item.name,
            self._item.question,
            not findings,
            self._found.where,
            findings,
            tuple(notes),
            len(trials),
            self._shown(max((trial.difference for trial in trials), default=0.0)),
        )

    def _shown(self, difference: float) -> float:
        """Two digits, unless numbers may be revealed: one's own answer and all digits would give the right one."""
        return difference if self._reveal else float(f"{difference:.2g}")


def _compare(item: Item, problem: Problem, output: str, got: Tensor, expected: Tensor) -> Miss:
    """The worst entry of one output, on the scale of the right answer."""
    prop = item.properties[output]
    got, expected = got.detach(), expected.detach()
    relative = (got - expected).abs() / expected.abs().clamp_min(prop.floor)
    relative = torch.where(got == expected, 0.0, relative.nan_to_num(torch.inf, torch.inf))
    flat = int(relative.argmax())
    index = tuple(int(i) for i in np.unravel_index(flat, relative.shape))
    difference = relative[index].item()
    allowed = max(prop.tolerance, 1e-6 * problem.scale)
    return Miss(output, difference, difference / allowed, index, got[index].item(), expected[index].item())


def _in_words(miss: Miss) -> str:
    if math.isnan(miss.got):
        return "is NaN"
    if math.isinf(miss.difference):
        return f"is {'infinite' if math.isinf(miss.got) else 'finite'} where it must not be"
    return f"is off by {miss.difference:.2g} (relative)"


def _is_single(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dtype == torch.float32
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and any(_is_single(entry) for entry in value)


def _inputs(item: Item, problem: Problem) -> dict[str, Any]:
    """The arguments of the call, as numbers and lists."""

    def numbers(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.tolist()
        return {name: numbers(entry) for name, entry in value.items()} if isinstance(value, dict) else value

    return {name: numbers(value) for name, value in item.ask(problem).items()}
