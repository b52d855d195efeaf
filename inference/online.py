"""Online EM and stochastic variational Bayes: one chunk of rows at a time.

Statistics of rows add, so EM and CAVI need no more of the data than an average of them over rows. With the statistics
of a chunk at the current point (EM) or the current q (variational Bayes), divided by its rows,

    average <- (1 - gamma_t) average + gamma_t chunk            gamma_t = (t + delay)^-decay, gamma_1 = 1
    Theta   <- mode of the complete conditionals at N * average         conjugate.mode                  "em"
    q       <- the complete conditionals at N * average                 conjugate.complete_conditionals "vb"

The first is online EM (Cappe and Moulines, 2009, equations 3 and 4), the second stochastic variational inference
(Hoffman, Blei, Wang and Paisley, 2013, figure 4): in natural parameters its step is the same average. A table is cut
into random chunks and passed over several times; a stream is read once, chunk by chunk, in its own order. Where a
stream does not say how many rows it has, N is the number of rows seen so far.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_real, check_whole
from zipmix.counts.store import Counts, as_counts
from zipmix.counts.stream import Stream, stacked
from zipmix.counts.table import Table, as_table
from zipmix.inference.cavi import divergence
from zipmix.inference.ending import Ending
from zipmix.inference.loop import out_of_time, progress_bar, settled
from zipmix.inference.problem import Problem
from zipmix.inference.restarts import restarts_alone
from zipmix.inference.result import Fit
from zipmix.inference.rng import generator
from zipmix.inference.start import SEEDING_ROWS, Init, starts
from zipmix.models.conjugate import (
    Conditionals,
    as_conditionals,
    complete_conditionals,
    draw,
    expected_logs,
    log_density,
    mean,
    mode,
)
from zipmix.models.kernel import Logs, Statistics, expectation, logs
from zipmix.models.parameters import Parameters, Prior, check_components, check_prior, require_mode, require_proper

Algorithm = Literal["em", "vb"]


class State(NamedTuple):
    """R runs after some chunks."""

    average: Statistics  # (R, ...) per row
    log_likelihood: Tensor  # (R,) per row, the same average of log p(x_i | Theta), or of its bound under q
    n_chunks: int
    n_seen: int  # rows


def absorb(state: State | None, chunk: Counts, tables: Logs, gamma: float) -> tuple[State, Tensor]:
    """Takes a chunk into the averages; the second result is the chunk's own log likelihood per row, (R,)."""
    statistics, log_likelihood = expectation(chunk, tables)
    n_rows = chunk.n_rows
    own, own_R = Statistics(*(value / n_rows for value in statistics)), log_likelihood / n_rows
    if state is None:
        return State(own, own_R, 1, n_rows), own_R
    average = Statistics(*(torch.lerp(old, new, gamma) for old, new in zip(state.average, own, strict=True)))
    running_R = torch.lerp(state.log_likelihood, own_R, gamma)
    return State(average, running_R, state.n_chunks + 1, state.n_seen + n_rows), own_R


def at(state: State, n_rows: int, prior: Prior) -> Conditionals:
    """The complete conditionals at N times the average."""
    return complete_conditionals(Statistics(*(n_rows * value for value in state.average)), prior)


def tables_at(conditionals: Conditionals, algorithm: Algorithm) -> Logs:
    """The kernel's tables: logs at the mode, or expected logs under q."""
    return logs(mode(conditionals)) if algorithm == "em" else expected_logs(conditionals)


def prior_term(conditionals: Conditionals, prior: Prior, algorithm: Algorithm) -> Tensor:
    """What joins the log likelihood in the objective: log p(Theta | prior) at the mode, or -KL(q || p), (R,)."""
    if algorithm == "em":
        return log_density(as_conditionals(prior), mode(conditionals))
    return -divergence(conditionals, as_conditionals(prior))


def online(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    algorithm: Algorithm = "em",
    n_starts: int = 10,
    init: Init = "kmeans++",
    start: Parameters | None = None,
    chunk_size: int = 200,
    n_passes: int = 20,
    delay: float = 1.0,
    decay: float = 0.6,
    n_draws: int = 1000,
    progress: bool = False,
) -> Fit:
    """MAP or variational posterior from a table or a stream, chunk by chunk, the best of several starts.

    Args (those of every method: zipmix.fit):
        X: (N, D) counts >= 0, NaN where missing; or a zipmix.stream of them, whose first 5000 rows or so also serve to
            find starts; or an iterable of such tables, all with the same columns, of which the first does. Streams must
            not be sorted: each chunk stands for the whole.
        prior: hyperparameters; for "em" alpha, a, b, e >= 1 (below 1 no MAP exists), for "vb" all > 0.
        algorithm: "em" (online EM) or "vb" (stochastic variational Bayes).
        n_starts: R >= 1, how many starts run, all in one batch.
        chunk_size: rows per chunk of a table or a zipmix.stream, across its shards; other iterables are taken as they
            come.
        n_passes: over a table, each in a new order of the rows. A stream is read once.
        delay: >= 0; the larger, the less the first chunks weigh.
        decay: in (0.5, 1], how fast the step falls.
        n_draws: S, draws of the final q to keep; "em" has none.
    Returns:
        parameters: the MAP ("em") or the mean of q, with draws (1, S, ...) from q ("vb"). objective: that of the whole
        table (log posterior, or ELBO); of a stream, the running average times the rows. trace: the log likelihood of
        every chunk, scaled to all rows, at the point before it was read, and the term of the prior at the point after.
        X: the table or the zipmix.stream; of another iterable only its first chunk is kept.
    Raises:
        InputError: data, prior or settings that cannot be used.
    """
    began = time.perf_counter()
    _check(algorithm, chunk_size, n_passes, delay, decay, n_draws)
    K = check_components(n_components)
    prior = check_prior(prior, K)
    (require_mode if algorithm == "em" else require_proper)(prior, "online")
    rng = generator(seed, "method")
    rows = _rows(X, chunk_size, n_passes, rng)
    problem = Problem(rows.table, rows.first, prior, K, began)
    theta = starts(rows.first, prior, n_components=K, n_starts=n_starts, init=init, start=start, seed=seed)
    read = _read(problem, rows, theta, algorithm, delay=delay, decay=decay, progress=progress)
    state, ending = read.state, read.ending
    q = at(state, rows.n_rows or state.n_seen, prior)
    likelihood_R = (rows.n_rows or state.n_seen) * state.log_likelihood
    if not rows.streamed:
        likelihood_R = expectation(rows.first, tables_at(q, algorithm))[1]
    objective_R = likelihood_R + prior_term(q, prior, algorithm)
    best = int(objective_R.argmax())
    converged, reason = settled(read.trace_TR[:, best], ending, _reason(rows, read))
    q_best = Conditionals(*(value[best] for value in q))
    many = Conditionals(*(value.expand(1, n_draws, *value.shape) for value in q_best))
    each_R = torch.tensor([settled(trace_T, ending, "")[0] for trace_T in read.trace_TR.T])
    return problem.fit(
        "online",
        parameters=mode(q_best) if algorithm == "em" else mean(q_best),
        draws=None if algorithm == "em" else draw(many, rng),
        objective=objective_R[best].item(),
        trace=read.trace_TR[:, best],
        trace_seconds=read.seconds_T,
        converged=converged,
        ending=ending,
        reason=reason + _caveats(rows),
        n_iter=state.n_chunks,
        settings=dict(
            algorithm=algorithm,
            n_starts=len(theta.pi),
            init=init,
            start=start,
            chunk_size=chunk_size,
            n_passes=n_passes,
            delay=delay,
            decay=decay,
            n_draws=n_draws,
        ),
        seed=seed,
        restarts=restarts_alone(objective_R, torch.full((len(objective_R),), state.n_chunks), each_R, read.trace_TR),
    )


def _check(algorithm: Algorithm, chunk_size: int, n_passes: int, delay: float, decay: float, n_draws: int) -> None:
    """Raises InputError for a setting that cannot be used."""
    check_whole(chunk_size, "chunk_size", at_least=1)
    check_whole(n_passes, "n_passes", at_least=1)
    check_whole(n_draws, "n_draws", at_least=1)
    if algorithm not in get_args(Algorithm):
        raise InputError(f"algorithm must be 'em' or 'vb', got {algorithm!r}.")
    if not 0.5 < check_real(decay, "decay") <= 1:
        raise InputError(f"decay must be over 0.5 and at most 1, got {decay!r}; 0.6 is usual.")
    check_real(delay, "delay", zero=True)


class _Read(NamedTuple):
    """The state after the last chunk, and the way there."""

    state: State
    trace_TR: Tensor
    seconds_T: Tensor
    ending: Ending


def _read(
    problem: Problem,
    rows: "_Rows",
    theta: Parameters,
    algorithm: Algorithm,
    *,
    delay: float,
    decay: float,
    progress: bool,
) -> _Read:
    """Reads all chunks, until Ctrl-C or the end of the budget of time; a chunk that is interrupted is left out."""
    tables, state, ending = logs(theta), None, Ending.COMPLETED
    trace, seconds = [], []
    with progress_bar(rows.n_chunks, "online", enabled=progress) as advance:
        try:
            for chunk in rows.chunks:
                gamma = 1.0 if state is None else (state.n_chunks + 1 + delay) ** -decay
                after, own_R = absorb(state, chunk, tables, gamma)
                n_rows = rows.n_rows or after.n_seen
                q = at(after, n_rows, problem.prior)
                trace.append(n_rows * own_R + prior_term(q, problem.prior, algorithm))
                seconds.append(time.perf_counter() - problem.began)
                tables = tables_at(q, algorithm)
                state = after
                advance()
                if out_of_time():
                    ending = Ending.BUDGET
                    break
        except KeyboardInterrupt:
            ending = Ending.INTERRUPTED
    if state is None:
        raise KeyboardInterrupt
    trace, seconds = trace[: state.n_chunks], seconds[: state.n_chunks]
    return _Read(state, torch.stack(trace), torch.tensor(seconds, dtype=torch.float64), ending)


def _reason(rows: "_Rows", read: _Read) -> str:
    """Why the chunks ended, as a sentence."""
    n_chunks, n_seen = read.state.n_chunks, read.state.n_seen
    stopped = f"{read.ending.stopped_by}: " if read.ending.early else ""
    return f"{stopped}read {n_chunks} chunks of the {'stream' if rows.streamed else 'table'}, {n_seen} rows in all"


def _caveats(rows: "_Rows") -> str:
    """What a fit of a stream does not hold."""
    running = "; the objective is a running average over the stream" * rows.streamed
    return running + ", and X is its first chunk" * (rows.n_rows is None)


def is_stream(X: Any) -> bool:
    """Whether X is an iterable of tables and not a table."""
    if isinstance(X, Stream):
        return True
    if hasattr(X, "shape") or not isinstance(X, Iterable):
        return False
    if not isinstance(X, list | tuple):
        return True
    return bool(X) and (len(getattr(X[0], "shape", ())) == 2 or _depth(X[0]) == 2)


def _depth(rows: Any) -> int:
    return 1 + _depth(rows[0]) if isinstance(rows, list | tuple) and rows else 0


class _Rows(NamedTuple):
    """How the rows come."""

    table: Table  # what the fit keeps
    first: Counts  # rows that serve to find starts
    chunks: Iterator[Counts]
    n_rows: int | None  # N, where it is known
    n_chunks: int | None
    streamed: bool


def _rows(X: Any, chunk_size: int, n_passes: int, rng: np.random.Generator) -> _Rows:
    if isinstance(X, Stream):
        return _streamed(X, chunk_size)
    if is_stream(X):
        return _iterated(X)
    table = as_table(X)
    counts = as_counts(table.X)

    def chunks() -> Iterator[Counts]:
        for _ in range(n_passes):
            for rows_C in torch.from_numpy(rng.permutation(counts.n_rows)).split(chunk_size):
                yield counts.take(rows_C)

    return _Rows(table, counts, chunks(), counts.n_rows, n_passes * -(-counts.n_rows // chunk_size), streamed=False)


def _streamed(X: Stream, chunk_size: int) -> _Rows:
    """Chunks of a stream in its own order."""
    tables = X.cut(chunk_size)
    beginning = list(itertools.islice(tables, -(-SEEDING_ROWS // chunk_size)))
    chunks = (as_counts(part) for part in itertools.chain(beginning, tables))
    n_chunks = -(-X.n_rows // chunk_size)
    return _Rows(Table(X, X.names), as_counts(stacked(beginning)), chunks, X.n_rows, n_chunks, streamed=True)


def _iterated(X: Iterable[Any]) -> _Rows:
    """Chunks as they come, the first one included."""
    numbered = enumerate(X)
    _, first = next(numbered, (0, None))
    if first is None:
        raise InputError("X is a stream without any chunk; give an iterable of at least one table of counts.")
    table = as_table(first)
    counts = as_counts(table.X)

    def chunks() -> Iterator[Counts]:
        yield counts
        for number, chunk in numbered:
            try:
                yield as_counts(as_table(chunk, n_features=counts.n_features).X)
            except InputError as error:
                raise InputError(f"chunk {number} of the stream, counted from 0: {error}") from None

    return _Rows(table, counts, chunks(), None, None, streamed=True)
