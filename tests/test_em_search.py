"""How `em` seeks the best optimum by default: what it finds, what it tells of it, and that nothing is lost."""

import itertools
import json
from importlib.resources import files
from typing import NamedTuple

import h5py
import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor

import zipmix
from zipmix import METHODS, Parameters
from zipmix.comparison.report import write_report
from zipmix.comparison.tables import restarts_table
from zipmix.inference.loop import iterate, never, time_budget
from zipmix.inference.search import N_MOVES, N_STARTS, SOUGHT, Race, split_and_merge

PLAIN = dict(annealing=0, race=None, split_merge=0)


@pytest.fixture(scope="module")
def drawn():
    """A table with many optima."""
    return zipmix.simulate(300, 30, 10, seed=1)


@pytest.fixture(scope="module")
def found(drawn):
    """By default."""
    return zipmix.fit(drawn.X, 10, seed=1)


def from_every_partition(X, K):
    """The best end of EM from every way to put the rows into K or fewer groups."""
    groups = itertools.product(range(K), repeat=len(X))
    labels = [one for one in groups if list(dict.fromkeys(one)) == list(range(len(set(one))))]
    R_LNK = torch.nn.functional.one_hot(torch.tensor(labels), K).double()
    n_LK1 = R_LNK.sum(1)[..., None]
    omega = (R_LNK.mT @ (X > 0).double() + 0.8) / (n_LK1 + 1)
    lam = (R_LNK.mT @ X + 0.5) / (n_LK1 + 0.5)
    start = Parameters((n_LK1[..., 0] + 0.5) / (len(X) + 0.5 * K), omega.clamp(0.05, 0.95), lam)
    return zipmix.fit(X, K, start=start, tolerance=1e-10, max_iter=500).objective


def test_the_default_finds_the_best_optimum_of_all_partitions_where_20_starts_do_not():
    X = zipmix.simulate(9, 4, 4, seed=7).X
    best = from_every_partition(X, 4)
    assert zipmix.fit(X, 4, n_starts=20, **PLAIN).objective < best - 0.5
    assert zipmix.fit(X, 4).objective == pytest.approx(best, abs=1e-6)


def test_the_default_finds_the_optimum_at_the_truth_where_20_starts_do_not(drawn, found):
    truth = zipmix.fit(drawn.X, 10, start=drawn.parameters).objective
    assert zipmix.fit(drawn.X, 10, seed=1, n_starts=20, **PLAIN).objective < truth - 10
    assert found.objective > truth - 1e-3


def test_no_run_of_the_default_falls_and_the_best_of_all_is_kept(found):
    runs = found.restarts
    change = runs.trace_TR.diff(dim=0)
    assert not (change < -1e-10 * runs.trace_TR[:-1].abs()).any()
    assert found.objective == runs.objective_R.max()
    assert zipmix.log_posterior(found.X, found.parameters).item() == pytest.approx(found.objective, rel=1e-12)
    assert found.trace[-1].item() == pytest.approx(found.objective, rel=1e-12)
    assert found.converged


def test_the_table_says_which_runs_were_left_behind_and_which_were_moves(found):
    runs, settings = found.restarts, found.settings
    assert (settings["n_starts"], settings["annealing"], settings["split_merge"]) == (N_STARTS, *SOUGHT[::2])
    after, finalists = settings["race"]
    n_rounds = int(runs.round_R.max())
    assert runs.round_R.bincount().tolist() == [N_STARTS] + [N_MOVES] * n_rounds
    starts = runs.round_R == 0
    on, left = starts & (runs.n_iter_R > after), starts & runs.left_R
    assert 0 < on.sum() <= finalists
    assert left.any()
    assert runs.trace_TR[after, on].min() >= runs.trace_TR[after, left].max()
    assert (runs.n_iter_R[left] == after).all()
    assert not (runs.left_R & runs.converged_R).any()
    rows = runs.table()
    assert rows.left_behind.sum() == runs.left_R.sum()
    assert rows["round"].loc[0] == 0
    ended = int((~runs.left_R).sum())
    assert runs.summary() == (
        f"of {N_STARTS} starts and {N_MOVES * n_rounds} split-and-merge moves {ended} ran to their ends; "
        f"{runs.n_best} reached the best optimum"
    )


def test_two_rounds_running_that_bring_nothing_end_the_moves(found):
    runs = found.restarts
    tops = [runs.objective_R[runs.round_R == t].max().item() for t in range(int(runs.round_R.max()) + 1)]
    gained = [top > max(tops[:t]) + 1e-6 * (1 + abs(max(tops[:t]))) for t, top in enumerate(tops) if t]
    assert gained[-2:] == [False, False]
    assert not any(pair == (False, False) for pair in itertools.pairwise(gained[:-1]))
    assert len(gained) < SOUGHT.split_merge


def test_a_start_that_is_given_is_not_left(drawn):
    """EM goes to the mode that the start leads to, and no further unless it is asked to."""
    first = zipmix.fit(drawn.X, 10, seed=3, n_starts=1, **PLAIN)
    again = zipmix.fit(drawn.X, 10, start=first.parameters)
    assert again.objective == pytest.approx(first.objective, abs=1e-6)
    assert len(again.restarts.objective_R) == 1
    assert {name: again.settings[name] for name in PLAIN} == PLAIN
    several = Parameters(*(value.expand(6, *value.shape) for value in first.parameters))
    assert not zipmix.fit(drawn.X, 10, start=several).restarts.left_R.any()
    moved = zipmix.fit(drawn.X, 10, start=first.parameters, split_merge=20)
    assert moved.objective > first.objective + 10
    assert len(moved.restarts.objective_R) > 1
    assert moved.settings["race"] is None


@pytest.mark.parametrize("place", ["proposals", "evaluate", "squarem_step"])
def test_ctrl_c_in_the_moves_loses_nothing_of_the_starts(place, drawn, monkeypatch):
    without = zipmix.fit(drawn.X, 10, seed=1, n_starts=5, split_merge=0)
    em, search = METHODS["em"].__globals__, split_and_merge.__globals__
    home = search if place == "proposals" else em
    usual, proposals, moving = home[place], search["proposals"], []

    def proposed(*arguments):
        moving.append(1)
        return proposals(*arguments)

    def stopped(*arguments):
        if place == "proposals" or moving:
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setitem(search, "proposals", proposed)
    monkeypatch.setitem(home, place, stopped)
    fitted = zipmix.fit(drawn.X, 10, seed=1, n_starts=5)
    assert fitted.objective == without.objective
    assert torch.equal(fitted.trace, without.trace)
    assert not fitted.converged
    assert fitted.ending == "interrupted"
    assert fitted.reason.startswith("interrupted by the user")


def test_a_budget_of_time_ends_the_annealing_and_the_moves(drawn, monkeypatch):
    with time_budget(0.0):
        fitted = zipmix.fit(drawn.X, 10)
    assert fitted.n_iter == 0
    assert fitted.restarts.round_R.max() == 0
    annealed = zipmix.fit(drawn.X, 10, n_starts=N_STARTS, max_iter=1, race=None, split_merge=0)
    plain = zipmix.fit(drawn.X, 10, max_iter=1, **PLAIN)
    # Nothing was annealed where there was no time for it.
    assert torch.equal(fitted.restarts.trace_TR[0], plain.restarts.trace_TR[0])
    assert not torch.equal(fitted.restarts.trace_TR[0], annealed.restarts.trace_TR[0])
    clock = iter([False] * SOUGHT.annealing + [True])
    monkeypatch.setitem(split_and_merge.__globals__, "out_of_time", lambda: next(clock))
    fitted = zipmix.fit(drawn.X, 10, n_starts=3)
    assert not fitted.converged
    assert fitted.ending == "budget"
    assert "budget of time before round 1" in fitted.reason


class Points(NamedTuple):
    """Runs on their way to limits that differ."""

    gap: Tensor
    limit: Tensor


def test_a_run_that_cannot_beat_what_it_must_is_left_behind():
    """Gaps halve or shrink by a hundredth in every step; the goal is 10."""
    shrink = torch.tensor([0.5, 0.5, 0.99, 0.99, 0.5], dtype=torch.float64)
    limit = torch.tensor([9.0, 11.0, 10.5, 10.5, 10 - 1e-9], dtype=torch.float64)
    gap = torch.tensor([4.0, 8.0, 0.6, 40.0, 1.0], dtype=torch.float64)
    step_of = dict(zip(limit.tolist(), shrink.tolist(), strict=True))

    def step(points):
        rate = torch.tensor([step_of[x] for x in points.limit.tolist()], dtype=torch.float64)
        return Points(points.gap * rate, points.limit)

    def ran(race):
        return iterate(
            step,
            Points(gap, limit),
            lambda points: points.limit - points.gap,
            max_iter=5000,
            tolerance=1e-12,
            progress=False,
            label="",
            leaving=race.leaving if race else never,
        )[1]

    loop = ran(Race(3, 5, 10.0))
    assert loop.left_R.tolist() == [True, False, False, True, True]
    assert loop.converged_R.tolist() == [False, True, True, False, False]
    # The first: 9 - 4 / 2^t + 20 * (4 / 2^t) < 10 from t = 6 or 7 on, by the larger of two gains, 2 * (4 / 2^t).
    gains = [4 / 2**t for t in range(20)]
    last = next(t for t in range(3, 20) if 9 - gains[t] + 20 * (gains[t - 2] - gains[t - 1]) < 10)
    assert loop.n_iter_R[0] == last
    # The fourth lacks 38.3 at the time of the race, and gains 0.4 a step.
    assert loop.n_iter_R[3] == 3
    assert "3 of 5 runs were left behind after 3 iterations or more" in loop.reason
    assert not ran(None).left_R.any()
    assert ran(Race(3, 5)).converged_R.all()


def test_a_file_that_is_older_than_races_is_read(found, tmp_path):
    path = found.save(tmp_path / "fit.nc")
    again = zipmix.load(path).restarts
    assert torch.equal(again.left_R, found.restarts.left_R)
    assert torch.equal(again.round_R, found.restarts.round_R)
    with h5py.File(path, "a") as file:
        del file["restarts/left"], file["restarts/round"]
    old = zipmix.load(path).restarts
    assert not old.left_R.any()
    assert not old.round_R.any()
    assert torch.equal(old.objective_R, found.restarts.objective_R)


def test_one_component_has_no_moves():
    fitted = zipmix.fit(zipmix.simulate(40, 3, 1, seed=1).X, 1)
    assert len(fitted.restarts.objective_R) == N_STARTS
    assert np.isfinite(fitted.objective)


def test_a_report_says_which_runs_were_left_behind_and_which_were_moves(tmp_path):
    """Where a comparison is asked for more than EM from its starts."""
    X = zipmix.simulate(60, 3, 3, seed=2).X
    asked = {"em": {"race": (2, 1), "split_merge": 1}}
    several = zipmix.compare(X, 3, methods=("em",), n_starts=8, n_chains=1, held_out=0, settings=asked)
    runs = several.fits["em"].restarts
    write_report(several, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Each line is one start of em, or a move after the starts." in page
    assert "dotted ones were left behind by a race." in page
    assert f"Objective of em against iterations: {runs.summary()}." in page
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    schema = json.loads(files("zipmix").joinpath("schemas/comparison.schema.json").read_text())
    jsonschema.validate(record, schema)
    written = record["methods"][0]["restarts"]
    assert written["left_behind"] == runs.left_R.tolist()
    assert written["round"] == runs.round_R.tolist() == [0] * 8 + [1] * N_MOVES
    ended, table = runs.objective_R[~runs.left_R], restarts_table(several)
    row = dict(zip(table.headers, table.rows[0], strict=True))
    assert [row["starts"], row["moves"], row["ran to the end"]] == ["8", str(N_MOVES), str(len(ended))]
    assert row["reached the best"] == str(runs.n_best)
    assert float(row["worst"]) == pytest.approx(ended.min().item(), abs=1e-4)
