"""online: held against EM and CAVI, which see all rows at once, and against the averages written out."""

import math
from importlib import import_module

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from zipmix import FLAT, InputError, Parameters, Prior, fit, load, log_posterior, simulate, stream
from zipmix.inference.online import is_stream, online

LOOSE = Prior(alpha=0.5, a=0.7, b=1.2, e=0.8, f=0.1)


def table(n, d, k, seed, missing=False):
    X = simulate(n, d, k, prior=Prior(f=0.2), seed=seed).X
    if missing:
        X[torch.from_numpy(np.random.default_rng(seed).random((n, d)) < 0.2)] = torch.nan
    return X


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(("algorithm", "method"), [("em", "em"), ("vb", "cavi")])
def test_stays_where_em_and_cavi_end(algorithm, method, missing):
    """One chunk of all rows from a fixed point: the statistics, and so the point, do not move."""
    X = table(80, 3, 2, 1, missing)
    end = fit(X, 2, method, n_starts=3)
    found = online(X, 2, algorithm=algorithm, chunk_size=80, n_passes=400, decay=0.51, delay=0.0, start=end.parameters)
    assert found.objective == pytest.approx(end.objective, rel=1e-7)
    for one, other in zip(found.parameters, end.parameters, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    if algorithm == "em":
        once = online(stream([X[:30], X[30:]]), 2, chunk_size=80, start=end.parameters)
        assert once.n_iter == 1
        assert once.objective == pytest.approx(end.objective, rel=1e-7)


@pytest.mark.parametrize(("algorithm", "method", "prior"), [("em", "em", Prior()), ("vb", "cavi", LOOSE)])
def test_ends_near_the_optimum_of_the_whole_table(algorithm, method, prior):
    """Of thousands of nats between a bad and a good fit, less than one is lost to the order of the rows."""
    X = table(3000, 5, 3, 2, missing=True)
    best = fit(X, 3, method, prior=prior, n_starts=5)
    found = fit(X, 3, "online", prior=prior, algorithm=algorithm, n_passes=60, seed=4)
    assert best.objective - 1 < found.objective <= best.objective + 1e-9 * abs(best.objective)
    assert found.converged
    if algorithm == "em":
        assert found.objective == pytest.approx(log_posterior(X, found.parameters, prior).item(), rel=1e-12)


def averages_by_hand(chunks, n_rows, *, prior, omega, lam, delay, decay):
    """K = 1, where nothing but b is latent; n_rows has the N that is known after each chunk."""
    m = s = 0.0
    for t, (column, N) in enumerate(zip(chunks, n_rows, strict=True), start=1):
        zero = omega * math.exp(-lam) / (1 - omega + omega * math.exp(-lam))
        gamma = 1.0 if t == 1 else (t + delay) ** -decay
        m += gamma * (sum(zero if x == 0 else 1.0 for x in column) / len(column) - m)
        s += gamma * (sum(column) / len(column) - s)
        omega = (prior.a + N * m - 1) / (prior.a + prior.b + N - 2)
        lam = (prior.e + N * s - 1) / (prior.f + N * m)
    return omega, lam


@pytest.mark.parametrize("known", [False, True])
def test_averages_written_out(known):
    """The formulas by hand: an iterable of tables has the N of the rows seen, a zipmix.stream that of all rows."""
    cells = [0.0, 4, 2, 0, 0, 9, 1, 0]
    chunks = [cells[:3], cells[3:6], cells[6:]]
    prior = Prior(alpha=1.5, a=2.0, b=3.0, e=2.0, f=0.5)
    start = Parameters(*(torch.tensor(value, dtype=torch.float64) for value in ([1.0], [[0.6]], [[2.0]])))
    settings = dict(prior=prior, start=start, delay=2.0, decay=0.8)
    if known:
        found = online(stream(np.array(cells)[:, None]), 1, chunk_size=3, **settings)
    else:
        found = online(iter([np.array(chunk)[:, None] for chunk in chunks]), 1, **settings)
    omega, lam = averages_by_hand(
        chunks, [8, 8, 8] if known else [3, 6, 8], prior=prior, omega=0.6, lam=2.0, delay=2.0, decay=0.8
    )
    assert found.parameters.omega.item() == pytest.approx(omega, rel=1e-12)
    assert found.parameters.lam.item() == pytest.approx(lam, rel=1e-12)
    assert found.n_iter == 3


@pytest.mark.parametrize("algorithm", ["em", "vb"])
def test_shards_and_blocks_of_a_stream_change_nothing(algorithm):
    """Chunks have their size whatever files and blocks the rows lie in, sparse ones among them."""
    X = table(700, 4, 2, 3, missing=True)
    settings = dict(algorithm=algorithm, chunk_size=90, n_starts=2, seed=5)
    whole = online(stream(X), 2, **settings)
    assert whole.n_iter == 8
    shards = [X[:50], sp.csr_array(X[50:333].numpy()), X[333:]]
    parts = online(stream(shards, block_rows=64), 2, **settings)
    torch.testing.assert_close(parts.trace, whole.trace, rtol=1e-12, atol=0)
    for one, other in zip(parts.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert parts.objective == pytest.approx(whole.objective, rel=1e-12)
    assert parts.trace.shape == (8,)
    assert online(stream(X), 2, **(settings | {"chunk_size": 200})).n_iter == 4


def test_a_stream_is_its_rows_as_an_iterable_of_chunks():
    """Under a flat prior N does not matter to the mode, and the same start and chunks give the same averages."""
    X = table(700, 4, 2, 3)
    start = Parameters(*(value for value in simulate(1, 4, 2, prior=Prior(f=0.2), seed=9).parameters))
    settings = dict(prior=FLAT, start=start)
    found = online(stream([X[:123], X[123:]], block_rows=31), 2, chunk_size=50, **settings)
    chunks = online(iter(X.split(50)), 2, **settings)
    for one, other in zip(found.parameters, chunks.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert found.objective == pytest.approx(chunks.objective, rel=1e-10)


def test_a_fit_to_a_stream_keeps_the_stream(tmp_path):
    X = table(700, 4, 2, 3, missing=True)
    np.save(tmp_path / "x.npy", X)
    rows = stream(tmp_path / "x.npy", block_rows=100)
    found = online(rows, 2, n_starts=2)
    assert found.X is rows
    assert found.reason.startswith("read 4 chunks of the stream, 700 rows in all")
    for name in ("predict", "score_samples", "responsibilities", "impute"):
        torch.testing.assert_close(getattr(found, name)(), getattr(found, name)(X), rtol=1e-12, atol=1e-12)
    again = load(found.save(tmp_path / "fit.nc"))
    torch.testing.assert_close(again.predict(X), found.predict())
    assert again.names == rows.names


def test_a_stream_is_read_once_and_comes_near_the_truth():
    """20 000 rows in chunks: rates within 4 standard errors of a Poisson mean, with room for the averaging."""
    truth = Parameters(
        torch.tensor([0.4, 0.6], dtype=torch.float64),
        torch.tensor([[0.8, 0.5], [0.6, 0.9]], dtype=torch.float64),
        torch.tensor([[2.0, 20.0], [15.0, 3.0]], dtype=torch.float64),
    )
    X = simulate(20_000, 2, 2, parameters=truth, seed=0).X
    read = []

    def chunks():
        for part in X.split(250):
            read.append(len(part))
            yield part.numpy()

    found = fit(chunks(), 2, "online")
    assert read == [250] * 80
    assert "20000 rows" in found.reason
    assert found.X.shape == (250, 2)
    order = found.parameters.lam[:, 0].argsort()
    # At a step of gamma = 81^-0.6 = 0.07 an average has the variance of 250 (2 - gamma) / gamma rows; half of that is
    # allowed for the rows whose z and b are uncertain. A component has 0.4 of the rows.
    effective = 250 / 81**-0.6
    for k in range(2):
        for name in ("omega", "lam"):
            value, true = getattr(found.parameters, name)[order[k]], getattr(truth, name)[k]
            variance = true * (1 - true) if name == "omega" else true / 0.5
            assert ((value - true).abs() < 4 * (variance / (0.4 * effective)).sqrt()).all()
    gap = log_posterior(X, fit(X, 2, "em", n_starts=2).parameters) - log_posterior(X, found.parameters)
    assert 0 <= gap < 30


def test_a_list_of_tables_is_a_stream_and_a_list_of_rows_is_a_table():
    rows = [[0.0, 1], [2, 3]]
    assert not is_stream(rows)
    assert not is_stream(np.array(rows))
    assert not is_stream([torch.tensor([0.0, 1]), torch.tensor([2.0, 3])])
    assert is_stream([rows, rows])
    assert is_stream([np.array(rows)])
    assert is_stream(iter([rows]))
    assert is_stream(stream(np.array(rows)))
    one, other = online([rows, rows], 1), online(iter([np.array(rows)] * 2), 1)
    assert all(torch.equal(*pair) for pair in zip(one.parameters, other.parameters, strict=True))


def test_ctrl_c_hands_back_what_is_there():
    def chunks():
        yield from table(100, 2, 2, 0).split(10)
        raise KeyboardInterrupt

    found = online(chunks(), 2)
    assert "interrupted" in found.reason
    assert not found.converged
    assert found.n_iter == 10


@pytest.mark.parametrize("name", ["complete_conditionals", "prior_term", "tables_at"])
@pytest.mark.parametrize("algorithm", ["em", "vb"])
def test_ctrl_c_amid_a_chunk_leaves_that_chunk_out(monkeypatch, name, algorithm):
    """Wherever the key is pressed, the fit is that of the chunks before, to the letter."""
    module = import_module("zipmix.inference.online")
    original, calls = getattr(module, name), []

    def pressed(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    chunks = table(60, 2, 2, 0).split(10)
    expected = online(iter(chunks[:3]), 2, algorithm=algorithm, init="prior", n_starts=2)
    monkeypatch.setattr(module, name, pressed)
    found = online(iter(chunks), 2, algorithm=algorithm, init="prior", n_starts=2)
    assert found.reason.startswith("interrupted by the user")
    assert found.n_iter == 3
    assert found.objective == expected.objective
    assert torch.equal(found.trace, expected.trace)
    assert len(found.trace_seconds) == 3
    assert all(torch.equal(*pair) for pair in zip(found.parameters, expected.parameters, strict=True))


def test_refuses_what_cannot_be_used():
    X = [[0.0, 1], [2, 3]]
    for settings, words in [
        ({"algorithm": "map"}, "algorithm must be 'em' or 'vb', got 'map'"),
        ({"decay": 0.5}, "decay must be over 0.5"),
        ({"decay": "fast"}, "decay must be a finite number > 0, got 'fast'"),
        ({"delay": -1.0}, "delay must be a finite number >= 0"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"prior": LOOSE}, r"prior\.alpha is .*no MAP"),
        ({"prior": Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=0.0), "algorithm": "vb"}, r"prior\.f is 0"),
    ]:
        with pytest.raises(InputError, match=words):
            online(X, 2, **settings)
    with pytest.raises(InputError, match="without any chunk"):
        online(iter([]), 2)
    with pytest.raises(InputError, match=r"chunk 1 of the stream, counted from 0: .*2 columns of the fit"):
        online(iter([X, [[1.0]]]), 2)
