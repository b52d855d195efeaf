"""The benchmarks measure what they say: every contestant runs, answers agree, records are whole, a loss is seen.

Sizes are tiny, so that nothing here depends on seconds.
"""

import importlib
import importlib.util
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import zipmix

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


# The programs in benchmarks/ import one another as siblings.
sys.path.append(str(BENCHMARKS))
SIBLINGS = ("core", "harness", "peers", "passes", "record", "check", "search", "fits", "scaling", "memory", "speed")
core, harness, peers, passes, record, check, search, fits, scaling, memory, speed = map(
    importlib.import_module, SIBLINGS
)
Contestant, Finding, Outcome, Ratio = harness.Contestant, harness.Finding, harness.Outcome, harness.Ratio

# What has to be installed for a contestant, of those that are no dependency of zipmix.
EXTRA = {passes.STEPMIX: "stepmix", passes.POMEGRANATE: "pomegranate", passes.NUMPYRO: "numpyro"}
INSTALLED = {name for name, module in EXTRA.items() if importlib.util.find_spec(module)}


@cache
def tiny(case):
    """A case at a size that takes no time."""
    if case == "pass":
        return passes.passes(300, 5, 3, part=60, repeats=2)
    if case == "sparse":
        return passes.sparse(300, 6, 3, repeats=2)
    if case == "restarts":
        return passes.restarts(60, 4, 2, n_starts=3, n_iter=4, repeats=2)
    X = zipmix.simulate(60, 3, 2, seed=0).X
    if case == "acceleration":
        return search.acceleration([("one", X, 2), ("two", X[:40], 2)], max_iter=500)
    if case == "strategies":
        return search.strategies([("one", X, 2)], seeds=[0])
    assert case == "fit"
    return fits.fits([("one", X, 2)], n_steps=40, repeats=1)


# --- the check ---------------------------------------------------------------------------------------------------


def on_record(**ratios):
    findings = [Finding(what, value, ratio=True) for what, value in ratios.items()]
    return {"case": record.as_record("case", Outcome("a case", [], findings), 1.0)}


def measured(*turns, left_out=()):
    """Stands for a case that measures these ratios, turn by turn."""
    queue = list(turns)

    def measure():
        findings = [Finding(what, value, ratio=True) for what, value in queue.pop(0).items()]
        return Outcome("a case", [], findings, left_out=left_out)

    measure.left = queue
    return {"case": measure}


@pytest.mark.parametrize(("loss", "fails"), [(0.21, True), (0.19, False), (-3.0, False)])
def test_a_loss_of_over_a_fifth_fails(loss, fails):
    now = {"fast": 8.0 * (1 - loss), "other": 2.0}
    lines, kept = check.check(on_record(fast=8.0, other=2.0), measured(now, now))
    assert kept is not fails
    assert lines[0] == f"{'LOST' if fails else 'kept'}  case: fast: {now['fast']:.2f} now, 8.00 on record"
    assert lines[1] == "kept  case: other: 2.00 now, 2.00 on record"


def test_what_looks_lost_is_measured_once_more_and_nothing_else():
    noisy = measured({"fast": 1.0}, {"fast": 7.9}, {"fast": 100.0})
    assert check.check(on_record(fast=8.0), noisy)[1]
    assert len(noisy["case"].left) == 1
    calm = measured({"fast": 7.9}, {"fast": 0.0})
    assert check.check(on_record(fast=8.0), calm)[1]
    assert len(calm["case"].left) == 1


def test_a_ratio_without_its_program_is_no_loss_and_one_that_vanished_is():
    name = harness.faster_than("zipmix", "Peer")
    sentence = "Peer: left out, peer is not installed; pip install"
    lines, kept = check.check(on_record(**{name: 8.0}), measured({}, left_out=(sentence,)))
    assert kept
    assert lines == [sentence, f"none  case: {name}: not measured now, 8.00 on record"]
    lines, kept = check.check(on_record(**{name: 8.0}), measured({}))
    assert not kept
    assert lines[0].startswith("LOST")


def test_seconds_are_never_compared():
    """Twice as slow a machine, the same ratio."""

    def outcome(slow):
        naps = {"fast": 0.002 * slow, "slow": 0.008 * slow}
        makers = {name: lambda nap=nap: Contestant(lambda: wait(nap)) for name, nap in naps.items()}
        return harness.compared("naps", makers, [Ratio("fast", "slow")], repeats=3)

    committed = {"case": record.as_record("case", outcome(1.0), 1.0)}
    lines, kept = check.check(committed, {"case": lambda: outcome(2.0)})
    assert kept, lines
    assert not check.check({"case": record.as_record("case", outcome(1.0)._replace(findings=[]), 1.0)}, {})[0]


def wait(seconds):
    import time

    time.sleep(seconds)


# --- measuring ---------------------------------------------------------------------------------------------------


def test_contestants_take_turns_and_the_first_turn_does_not_count():
    calls = []
    values = iter(range(100))

    def called(name):
        calls.append(name)
        return next(values)

    found = harness.in_turns({"a": lambda: called("a"), "b": lambda: called("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert found == {"a": [2, 4], "b": [3, 5]}


def test_medians_quartiles_and_parts():
    assert harness.spread([4.0, 1.0, 2.0, 3.0, 100.0]) == {"median_s": 3.0, "quartiles_s": [2.0, 4.0], "repeats": 5}
    makers = {
        "whole": lambda: Contestant(lambda: wait(0.02)),
        "a tenth": lambda: Contestant(lambda: wait(0.02), share=0.1),
    }
    outcome = harness.compared("naps", makers, [Ratio("whole", "a tenth", 5.0)], repeats=3)
    assert outcome.findings[0].measured == pytest.approx(10.0, rel=0.2)
    assert outcome.findings[0].met


@pytest.mark.parametrize(
    ("finding", "met"),
    [
        (Finding("x", 2.0, 2.0), True),
        (Finding("x", 1.9, 2.0), False),
        (Finding("x", 1.9, 2.0, at_most=True), True),
        (Finding("x", 2.1, 2.0, at_most=True), False),
        (Finding("x", 2.1), None),
    ],
)
def test_what_is_asked_is_met_or_not(finding, met):
    assert finding.met is met


def test_peers_that_are_not_installed_are_left_out_with_a_line(monkeypatch, capsys):
    for module in EXTRA.values():
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "numpyro_program", raising=False)
    outcome = tiny.__wrapped__("pass")
    assert [line.split(":")[0] for line in outcome.left_out] == list(EXTRA)
    assert "stepmix is not installed; pip install" in outcome.left_out[0]
    assert capsys.readouterr().err.splitlines() == list(outcome.left_out)
    names = [row["contestant"] for row in outcome.rows]
    assert {passes.ZIPMIX, passes.SKLEARN} <= set(names)
    assert not EXTRA.keys() & set(names)
    assert all(line in record.as_page({"pass": record.as_record("pass", outcome, 1.0)}) for line in outcome.left_out)


# --- every case --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["pass", "sparse", "restarts", "acceleration", "strategies", "fit"])
def test_every_contestant_runs_and_its_row_is_whole(case, tmp_path):
    outcome = tiny(case)
    record.save({case: record.as_record(case, outcome, 1.0)}, tmp_path)
    saved = json.loads((tmp_path / "benchmarks.json").read_text())["cases"][case]
    assert saved["rows"]
    assert saved["findings"]
    for row in saved["rows"]:
        assert row["command"] == f"python benchmarks/speed.py --only {case}"
        assert "cores used" in row["machine"]
        assert row["repeats"] >= 1
        assert all(row["versions"].values())
        assert row["versions"]
        if row.get("median_s") is not None:
            low, high = row["quartiles_s"]
            assert 0 < low <= row["median_s"] <= high
    for finding in saved["findings"]:
        assert np.isfinite(finding["measured"])
    page = (tmp_path / "benchmarks.md").read_text()
    for finding in outcome.findings:
        assert f"- {finding.what}: **" in page
        verdict = {True: "met", False: "not met", None: None}[finding.met]
        lines = [line for line in page.splitlines() if line.startswith(f"| {case} | {finding.what} | ")]
        assert [line.split(" | ")[-1] for line in lines] == ([f"{verdict} |"] if verdict else [])


def test_contestants_of_the_cases_are_the_ones_named():
    everyone = set(EXTRA) - INSTALLED
    assert {row["contestant"] for row in tiny("pass").rows} | everyone == {
        passes.LIMIT, passes.ZIPMIX, passes.SINGLE, passes.SKLEARN, passes.STEPMIX, passes.POMEGRANATE,
        passes.LEAN, passes.COURSEWORK, passes.PYRO, passes.NUMPYRO,
    }  # fmt: skip


def test_answers_that_can_be_compared_agree():
    X, theta = passes.drawn(200, 5, 3)
    agreed = set(passes.same_answers(X, theta))
    assert {passes.ZIPMIX, passes.SINGLE, passes.LEAN, passes.COURSEWORK, passes.PYRO} <= agreed
    assert agreed >= INSTALLED - {passes.STEPMIX}


def elsewhere(right):
    """The same work at another point."""
    return lambda X, theta, *rest, **settings: right(X, theta._replace(lam=1.001 * theta.lam), *rest, **settings)


def beside(right):
    """The right objective, and a wrong next point or gradient."""

    def work(*arguments, **settings):
        found = right(*arguments, **settings)
        if callable(found):
            return lambda: (found()[0], {name: 1.001 * slope for name, slope in found()[1].items()})
        return found[0]._replace(lam=1.001 * found[0].lam), found[1]

    return work


# That of the Pyro gradient is held against NumPyro's, where it is installed.
@pytest.mark.parametrize(
    ("name", "error"),
    [("broadcast_pass", elsewhere), ("broadcast_pass", beside), ("pyro_gradient", elsewhere)]
    + [("pyro_gradient", beside)] * (passes.NUMPYRO in INSTALLED),
)
def test_a_contestant_that_does_other_work_is_not_timed(name, error, monkeypatch):
    monkeypatch.setattr(passes, name, error(getattr(passes, name)))
    with pytest.raises(AssertionError):
        tiny.__wrapped__("pass")


def counting(step, calls):
    """A step that leaves its name behind."""

    def counted(*arguments, **settings):
        calls.append(step.__name__)
        return step(*arguments, **settings)

    return counted


def test_gaussian_peers_do_three_iterations_in_a_fit_of_two(monkeypatch):
    from sklearn.mixture import GaussianMixture

    X, theta = passes.drawn(200, 4, 2)
    calls = []
    for name in ("_e_step", "_m_step"):
        monkeypatch.setattr(GaussianMixture, name, counting(getattr(GaussianMixture, name), calls))
    peers.gaussian_mixture(X, theta)()
    # The M-step of the start has a name of its own.
    assert calls.count("_e_step") == peers.FIT_OF_TWO
    assert calls.count("_m_step") == peers.FIT_OF_TWO - 1


def test_time_to_a_goal_is_that_of_the_first_iteration_beyond_it():
    climb = fits.Climb(np.array([-9.0, -5.0, -3.0]), np.array([0.1, 0.2, 0.4]))
    assert climb.reaches(-5.0) == 0.2
    assert climb.reaches(-4.9) == 0.4
    assert climb.reaches(-2.0) == float("inf")


def test_climbers_come_to_the_optimum_of_em_from_the_same_start():
    """All but Adam alone, which falls short and says so."""
    rows = {row["contestant"]: row for row in tiny("fit").rows}
    short = {name for name, row in rows.items() if row["reached"] != "yes"}
    assert short <= {fits.ADAM, fits.NUMPYRO_ADAM}
    assert fits.ADAM in short
    assert "nats short after" in rows[fits.ADAM]["reached"]
    assert rows[fits.ADAM]["median_s"] is None
    assert (fits.NUMPYRO in rows) is (passes.NUMPYRO in INSTALLED)


def test_exponents_are_those_of_the_curve():
    points = [{"value": value, "median_s": 0.003 * value**0.7} for value in (1.0, 3.0, 20.0)]
    slope, intercept = scaling.exponent(points)
    assert slope == pytest.approx(0.7)
    assert np.exp(intercept) == pytest.approx(0.003)


def test_scaling_draws_its_figure(tmp_path):
    axes = {"N": dict(n=(50, 100), d=(4,), k=(2,)), "density": dict(n=(50,), d=(20,), k=(2,), density=(0.1, 0.3))}
    outcome = scaling.scaling(axes, repeats=1, folder=tmp_path)
    assert [row["along"] for row in outcome.rows] == ["N", "N", "density", "density"]
    assert [finding.what for finding in outcome.findings] == ["exponent of N", "exponent of density"]
    assert (tmp_path / scaling.FIGURE).stat().st_size > 5000


def test_peaks_are_those_of_a_process_of_its_own():
    """A process that holds 200 MB has a peak of as much more than one that does not."""
    small, big = (harness.alone(f"x = bytearray({size})\nprint(len(x))") for size in (1, 200_000_000))
    assert big.told == "200000000"
    assert big.gb - small.gb == pytest.approx(0.2, abs=0.02)
    with pytest.raises(RuntimeError, match="no such thing"):
        harness.alone("raise ValueError('no such thing')")


def test_memory_of_a_contestant_of_a_wide_table_and_of_a_stream():
    outcome = memory.contestants(2000, 5, 3, part=200, only=[passes.LEAN])
    nothing, one = outcome.rows
    assert (nothing["contestant"], one["contestant"]) == (passes.NOTHING, passes.LEAN)
    assert one["rows"] == 200
    beyond = one["peak_gb"] - nothing["peak_gb"]
    assert one["at_all_rows_gb"] == pytest.approx(nothing["peak_gb"] + 10 * beyond)
    assert memory.wide(60, 40, 4, 2).findings[0].met
    streamed = memory.large(n=3000, d=4, k=2, block=1000)
    assert streamed.findings[1].measured <= 1e-10
    assert [row["contestant"] for row in streamed.rows] == ["zipmix.stream of the file", "the table in memory"]


def test_the_default_is_held_against_the_best_way_to_search(monkeypatch):
    """A default that finds a worse optimum is not met."""
    X = zipmix.load_data("digits").X[:60]
    worse = dict(n_starts=1, init="prior", annealing=0, race=None, split_merge=0)
    monkeypatch.setitem(search.STRATEGIES, "the default", worse)
    outcome = search.strategies([("digits", X, 6)], seeds=[3])
    assert outcome.findings[0].measured > search.SAME
    assert outcome.findings[0].met is False


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_keeps_and_checks(tmp_path, monkeypatch, capsys):
    value = 4.0

    def case():
        row = {"contestant": "a", **harness.spread([1.0]), "versions": {"zipmix": "0"}}
        return Outcome("a case", [row], [Finding("fast", value, 2.0, ratio=True)])

    monkeypatch.setattr(speed, "cases", lambda: dict.fromkeys(speed.NAMES, case))
    speed.measure(["pass", "sparse"], tmp_path, keep=False)
    speed.measure(["restarts"], tmp_path, keep=True)
    assert list(record.load(tmp_path)) == ["pass", "sparse", "restarts"]
    assert speed.compare(["pass", "sparse"], tmp_path) == 0
    value = 3.0
    assert speed.compare(["pass"], tmp_path) == 1
    assert "LOST  pass: fast: 3.00 now, 4.00 on record" in capsys.readouterr().out
    speed.measure(["restarts"], tmp_path, keep=False)
    assert list(record.load(tmp_path)) == ["restarts"]


def test_every_case_has_a_name_on_the_command_line():
    assert tuple(speed.cases()) == speed.NAMES
    assert set(speed.QUICK) <= set(speed.NAMES)


def test_all_starts_at_once_is_the_same_broadcast_form():
    X = zipmix.simulate(30, 3, 2, seed=1).X
    points = [zipmix.simulate(1, 3, 2, seed=seed).parameters for seed in (2, 3)]
    both = zipmix.Parameters(*map(torch.stack, zip(*points, strict=True)))
    for elbo in (False, True):
        mapped, objective = core.broadcast_pass(X, both, elbo=elbo)
        for r, point in enumerate(points):
            one, value = core.broadcast_pass(X, point, elbo=elbo)
            passes.close(zipmix.Parameters(*(field[r] for field in mapped)), one, rtol=1e-12)
            assert objective[r].item() == pytest.approx(value.item(), rel=1e-12)
