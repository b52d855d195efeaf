"""How rows arrive changes nothing: dense, sparse, integer, in chunks, parts and batches, held to the model by cells."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.distributions import Poisson

import zipmix
from zipmix import InputError, Parameters, Prior
from zipmix.counts import passes as passes_module
from zipmix.counts import rows as rows_module
from zipmix.counts import store as counts_module
from zipmix.counts import threads as threads_module
from zipmix.counts.rows import Factor, SparseRows
from zipmix.counts.store import as_counts
from zipmix.counts.table import as_table
from zipmix.counts.threads import in_parts
from zipmix.models.kernel import expectation, log_joint, logs, rho, statistics

N, D, K, R = 97, 7, 3, 4
NAN = float("nan")


def point(seed, batch=(R,), d=D):
    rng = np.random.default_rng(seed)
    pi = rng.dirichlet(np.ones(K), size=batch)
    omega, lam = rng.beta(1, 1, size=(*batch, K, d)), rng.gamma(1.0, 4.0, size=(*batch, K, d))
    return Parameters(*(torch.from_numpy(value) for value in (pi, omega, lam)))


def table(seed, density=0.4, missing=0.0, scale=6.0, n=N, d=D):
    rng = np.random.default_rng(seed)
    X = rng.poisson(scale, size=(n, d)) * (rng.random((n, d)) < density).astype(float)
    X[rng.random((n, d)) < missing] = NAN
    return X


def cell_by_cell(X, theta):
    """Statistics and log p(x_i, z_i = k), from N x K x D densities of the model's equations (4) to (6)."""
    X = torch.as_tensor(X, dtype=torch.float64)
    observed = ~X.isnan()
    x = X.nan_to_num(0.0)[:, None]
    omega, lam = theta.omega[..., None, :, :], theta.lam[..., None, :, :]
    on = omega.log() + Poisson(lam).log_prob(x)
    off = torch.where(x == 0, torch.log1p(-omega), -torch.inf)
    either = torch.logaddexp(on, off)
    cell = torch.where(observed[:, None], either, 0.0)
    joint = theta.pi.log()[..., None, :] + cell.sum(-1)
    log_rows = joint.logsumexp(-1)
    R_NK = (joint - log_rows[..., None]).exp()
    seen = R_NK[..., None] * observed[:, None]
    b = torch.where(either > -torch.inf, (on - either).exp(), 0.0)
    return joint, log_rows.sum(-1), (R_NK.sum(-2), *((seen * part).sum(-3) for part in (1, x, x > 0, b)))


def close(got, want, tolerance=1e-10):
    scale = want.abs().max().clamp_min(1.0)
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * scale


FORMS = {
    "float64": lambda X: X,
    "tensor": torch.from_numpy,
    "csr": sp.csr_matrix,
    "csc": sp.csc_array,
    "coo": sp.coo_array,
    "torch sparse": lambda X: torch.from_numpy(X).to_sparse(),
}
INTEGER_FORMS = {
    "int64": lambda X: X.astype(np.int64),
    "uint8": lambda X: X.astype(np.uint8),
    "uint16": lambda X: X.astype(np.uint16),
    "csr of int16": lambda X: sp.csr_array(X.astype(np.int16)),
    "bool": lambda X: X > 0,
}


@pytest.fixture(params=["one chunk", "small chunks", "two threads"])
def arrival(request, monkeypatch):
    """Chunks so small that every pass has many, the last of them short; and parts in threads."""
    if request.param != "one chunk":
        for module in (rows_module, counts_module):
            monkeypatch.setattr(module, "CHUNK", 800)
    if request.param != "two threads":
        yield
        return
    parts = []

    def part(function, *bounds):
        parts.append(bounds)
        return function(*bounds)

    monkeypatch.setattr(threads_module, "PART", 1)
    monkeypatch.setattr(
        passes_module, "in_parts", lambda n, size, function: in_parts(n, size, functools.partial(part, function))
    )
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
    assert len(parts) != 1


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_every_form_gives_the_statistics_of_the_model(form, missing, wide, arrival):
    d = 40 if wide else D
    X, theta = table(1, missing=missing, d=d, density=0.1 if wide else 0.4), point(2, d=d)
    if wide:
        X[3, 5] = 30_000
    counts = as_counts(as_table(FORMS[form](X)).X)
    joint, log_likelihood, expected = cell_by_cell(X, theta)
    got, got_log_likelihood = expectation(counts, logs(theta))
    close(got_log_likelihood, log_likelihood)
    for a, b in zip(got, expected, strict=True):
        close(a, b)
    close(log_joint(counts, logs(theta)), joint)
    R_NK = joint.softmax(-1)
    rho_KD = rho(logs(theta))
    for a, b in zip(statistics(counts, R_NK, lambda zeros: rho_KD * zeros), expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("form", INTEGER_FORMS)
def test_integers_are_kept_and_give_the_same(form):
    X = table(3)
    X = X > 0 if form == "bool" else X
    counts = as_counts(as_table(INTEGER_FORMS[form](X)).X)
    for a, b in zip(expectation(counts, logs(point(4)))[0], cell_by_cell(X * 1.0, point(4))[2], strict=True):
        close(a, b)


@pytest.mark.parametrize(
    ("largest", "kind"), [(255, torch.uint8), (256, torch.int16), (40_000, torch.int32), (5_000_000_000, torch.int64)]
)
def test_counts_are_held_in_the_smallest_integer_type(largest, kind):
    X = table(5)
    X[2, 3] = largest
    dense, sparse = as_counts(as_table(X).X), as_counts(as_table(sp.csr_array(X)).X)
    assert dense.X.dtype == kind
    assert torch.from_numpy(sparse.X.data).dtype == kind
    close(dense.log_factorial_N, torch.lgamma(torch.from_numpy(X) + 1).sum(1), 1e-14)
    close(sparse.log_factorial_N, dense.log_factorial_N, 1e-14)


def test_few_kinds_of_counts_are_one_hot_codes_and_many_are_not():
    few, many = table(6, n=2000), table(6, scale=4000.0)
    assert as_counts(as_table(sp.csr_array(few)).X).codes is not None
    assert as_counts(as_table(sp.csr_array(many)).X).codes is None
    for X in (few, many):
        counts = as_counts(as_table(sp.csr_array(X)).X)
        assert all(isinstance(rows, SparseRows) for _, rows in counts.chunks(0, len(X), 5, torch.float64))
        for a, b in zip(expectation(counts, logs(point(7)))[0], cell_by_cell(X, point(7))[2], strict=True):
            close(a, b)


@pytest.mark.parametrize("spread", ["small scores", "large scores", "large scores later"])
@pytest.mark.parametrize("form", ["float64", "csr"])
def test_scores_of_any_size_give_the_statistics_of_the_model(form, spread, arrival):
    X, theta = table(13, missing=0.1), point(14)
    large = {"small scores": 0, "large scores": 1, "large scores later": (np.arange(N) > N // 2)[:, None]}[spread]
    X = X + 300 * large * (X > 0)
    counts = as_counts(as_table(FORMS[form](X)).X)
    _, log_likelihood, expected = cell_by_cell(X, theta)
    got, got_log_likelihood = expectation(counts, logs(theta))
    close(got_log_likelihood, log_likelihood)
    for a, b in zip(got, expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("form", ["float64", "csr"])
@pytest.mark.parametrize("edge", ["lam", "omega = 0", "omega = 1", "pi", "all components"])
def test_what_a_component_rules_out_it_does_not_get(form, edge, arrival):
    """Rates of 0, and shares of 0 and 1: log 0 among the weights, which no mean over components may take in."""
    X, theta = table(15, missing=0.1), point(16)
    X[0], X[1] = 0, 2
    if edge == "lam":
        theta.lam[:, 0, :3] = 0.0
    elif edge == "omega = 0":
        theta.omega[:, 1, 2] = 0.0
    elif edge == "omega = 1":
        theta.omega[:, 2] = 1.0
    elif edge == "pi":
        theta.pi[:, 0] = 0.0
    else:  # the last column can only be 0
        theta.lam[..., -1] = 0.0
        X[:, -1] = 0
    counts = as_counts(as_table(FORMS[form](X)).X)
    _, log_likelihood, expected = cell_by_cell(X, theta)
    got, got_log_likelihood = expectation(counts, logs(theta))
    close(got_log_likelihood, log_likelihood)
    for a, b in zip(got, expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("form", ["float64", "csr"])
def test_a_row_that_every_component_rules_out_leaves_all_finite(form):
    X, theta = table(21), point(22)
    theta.lam[..., -1] = 0.0
    X[:, -1] = 0
    X[3, -1] = 2
    counts = as_counts(as_table(FORMS[form](X)).X)
    found, log_likelihood = expectation(counts, logs(theta))
    assert all(bool(field.isfinite().all()) for field in (*found, log_likelihood))
    assert (log_likelihood < -1e14).all()
    close(found.n.sum(-1), torch.full((R,), float(N), dtype=torch.float64))


@pytest.mark.parametrize("big", [1e4, 1e6])
def test_a_few_rows_of_large_counts_cost_the_others_no_accuracy(big):
    """A component far from the others must put no large numbers into their scores: held to 80-bit arithmetic."""
    rng = np.random.default_rng(0)
    X = rng.poisson(3.0, size=(2000, 4)) * (rng.random((2000, 4)) < 0.7).astype(float)
    X[:5] = rng.poisson(big, size=(5, 4))
    pi = np.array([0.6, 0.3975, 0.0025])
    lam = np.concatenate([rng.uniform(1, 5, size=(2, 4)), np.full((1, 4), big)])
    omega = rng.uniform(0.5, 0.9, size=lam.shape)
    theta = Parameters(*map(torch.from_numpy, (pi, omega, lam)))
    found, log_likelihood = expectation(as_counts(as_table(X).X), logs(theta))
    x, long = X[:, None].astype(np.longdouble), np.longdouble
    log_factorial = torch.lgamma(torch.from_numpy(X) + 1).numpy()[:, None]
    on = np.log(omega.astype(long)) + x * np.log(lam.astype(long)) - lam.astype(long) - log_factorial
    cell = np.where(x > 0, on, np.log1p(-omega.astype(long) * -np.expm1(-lam.astype(long))))
    joint = np.log(pi.astype(long)) + cell.sum(-1)
    top = joint.max(1, keepdims=True)
    total = np.exp(joint - top).sum(1, keepdims=True)
    n_K = (np.exp(joint - top) / total).sum(0)
    # What float64 makes of the five rows, whose terms are as large as their counts times the log of a rate.
    rounding = 2.0**-52 * 5 * 4 * big * np.log(big) * 8
    assert abs(float(log_likelihood - float((top + np.log(total)).sum()))) < 1e-9 + rounding
    np.testing.assert_allclose(found.n, n_K.astype(float), rtol=1e-11)


def test_em_climbs_where_a_few_rows_have_large_counts():
    rng = np.random.default_rng(1)
    X = rng.poisson(3.0, size=(2000, 4)) * (rng.random((2000, 4)) < 0.7).astype(float)
    X[:5] = rng.poisson(1e6, size=(5, 4))
    trace = zipmix.fit(X, 3, n_starts=1, annealing=0, split_merge=0, accelerate=False, max_iter=200).trace
    assert (trace.diff() >= -1e-12 * trace[1:].abs()).all()


def test_scores_of_many_chunks_are_those_of_one(monkeypatch):
    """Chunks share the memory of their scores; what is handed out is its own."""
    X = table(17)
    for form in (X, sp.csr_array(X)):
        counts = as_counts(as_table(form).X)
        W = torch.randn(5, counts.n_columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        factor = Factor(counts.encode(W), torch.arange(5.0, dtype=torch.float64)[:, None])
        A = torch.from_numpy(np.concatenate([X, X > 0], axis=1).astype(float))
        want = W @ A.T + factor.bias_J1
        whole = counts.scores(factor)
        with monkeypatch.context() as small:
            small.setattr(counts_module, "CHUNK", 400)
            close(counts.scores(factor), want, 1e-13)
        close(whole, want, 1e-13)


@pytest.mark.parametrize("form", ["float64", "csr"])
def test_memory_of_scores_serves_in_and_out_of_inference_mode(form):
    counts = as_counts(as_table(FORMS[form](table(20, n=11))).X)
    factor = Factor(counts.encode(torch.ones(3, counts.n_columns, dtype=torch.float64)), torch.zeros(3, 1).double())
    with torch.inference_mode():
        inside = counts.scores(factor)
    assert torch.equal(counts.scores(factor), inside.clone())


def test_batches_of_points_are_the_points_one_by_one():
    X, theta = as_counts(as_table(table(8, missing=0.1)).X), point(9, batch=(2, R))
    together, value = expectation(X, logs(theta))
    for i in range(2):
        for r in range(R):
            alone, alone_value = expectation(X, logs(Parameters(*(field[i, r] for field in theta))))
            close(value[i, r], alone_value, 1e-12)
            for a, b in zip(together, alone, strict=True):
                close(a[i, r], b, 1e-12)


def test_rows_taken_out_of_a_sparse_table_are_those_rows():
    X = table(10, missing=0.1, n=2000)
    rows = torch.tensor([5, 1, 17, 1])
    for form in (X, sp.csr_array(X)):
        taken = as_counts(as_table(form).X).take(rows)
        for a, b in zip(expectation(taken, logs(point(11)))[0], cell_by_cell(X[rows], point(11))[2], strict=True):
            close(a, b)


def test_explicit_zeros_are_zeros_and_duplicates_are_summed():
    rows, columns, values = [0, 0, 1, 2, 2], [1, 1, 0, 2, 0], [2.0, 3.0, 0.0, 1.0, NAN]
    X = sp.coo_array((values, (rows, columns)), shape=(3, 3))
    want = np.array([[0, 5, 0], [0, 0, 0], [NAN, 0, 1.0]])
    parsed = as_table(X)
    assert parsed.X.nnz == 3
    np.testing.assert_array_equal(parsed.X_ND.numpy(), want)
    assert X.nnz == 5
    unsorted = sp.csr_array((np.array([1.0, 0.0, 4.0]), np.array([2, 0, 1]), np.array([0, 3])), shape=(1, 3))
    np.testing.assert_array_equal(as_table(unsorted).X_ND.numpy(), [[0, 4, 1]])
    assert unsorted.indices.tolist() == [2, 0, 1]


@pytest.mark.parametrize(("value", "word"), [(-1.0, "negative"), (1.5, "fractional"), (np.inf, "infinite")])
@pytest.mark.parametrize("form", ["float64", "csr", "coo", "csc"])
def test_bad_cells_are_named_by_row_and_column(value, word, form):
    X = table(12)
    X[60, 4] = X[61, 1] = value
    with pytest.raises(
        InputError, match=rf"X has 2 {word} cell\(s\), the first in row 60, column 4 \('x4'\): {value:g};"
    ):
        as_table(FORMS[form](X))


@pytest.mark.parametrize("method", ["em", "cavi", "gibbs"])
def test_a_fit_of_a_sparse_table_is_the_fit_of_the_dense_one(method, tmp_path):
    X = zipmix.simulate(300, 5, 3, prior=Prior(a=1.0, b=4.0), seed=1).X.numpy()
    X[4, 2] = NAN
    settings = dict(n_warmup=5, n_draws=10) if method == "gibbs" else dict(n_starts=3)
    dense, sparse = (zipmix.fit(form, 2, method, seed=3, **settings) for form in (X, sp.csr_matrix(X)))
    assert sparse.objective == pytest.approx(dense.objective, rel=1e-10)
    close(sparse.responsibilities(), dense.responsibilities(), 1e-4)  # EM stops on its objective
    close(sparse.impute(), dense.impute(), 1e-4)
    assert sp.issparse(sparse.X)
    again = zipmix.load(sparse.save(tmp_path / "fit.nc"))
    assert (again.X != sparse.X).sum() == 1  # NaN differs from itself
    close(again.score_samples(), sparse.score_samples(), 1e-14)
    assert again.to_arviz()["observed_data"]["x"].shape == X.shape


WIDE = """
import numpy as np, scipy.sparse as sp, zipmix
def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

rng = np.random.default_rng(0)
X = sp.random_array((4_000, 20_000), density=0.005, format="csr", rng=rng)
X.data = np.ceil(5 * X.data)
before = peak()
fit = zipmix.fit(X, 3, n_starts=1, max_iter=3)
fit.predict()
print(peak() - before)
"""


def test_a_wide_sparse_table_is_never_made_dense():
    """Dense, the table alone is 640 MB; the fit has to do with less than half of that."""
    done = subprocess.run([sys.executable, "-c", WIDE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 320e6


def test_a_sparse_matrix_of_complex_numbers_is_refused():
    with pytest.raises(InputError, match="a sparse matrix of complex128"):
        as_table(sp.csr_array(np.eye(3, dtype=complex)))


def heavy(largest, n=2000, d=100):
    """Counts up to about `largest`, at a point near the one they were drawn from."""
    rng = np.random.default_rng(0)
    lam = rng.uniform(0.1, largest, size=(R, K, d))
    X = rng.poisson(lam[0][rng.integers(K, size=n)]) * (rng.random((n, d)) < 0.5).astype(float)
    pi, omega = rng.dirichlet(np.ones(K), size=R), rng.uniform(size=lam.shape)
    return X, Parameters(*(torch.from_numpy(value) for value in (pi, omega, lam)))


@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("largest", [3, 10, 300, 10_000, "a few rows of 10 000"])
@pytest.mark.parametrize("form", ["float64", "csr"])
def test_float32_keeps_the_log_joint_to_1e_4(largest, form, missing, monkeypatch):
    """A hundred columns, small counts and large ones, and tables where a few rows have large ones."""
    monkeypatch.setattr(counts_module, "CHUNK", 2**18)
    X, theta = heavy(3 if isinstance(largest, str) else largest)
    if isinstance(largest, str):
        X[::50] *= 3000
    X[np.random.default_rng(1).random(X.shape) < missing] = NAN
    theta.lam[1, 0, :5], theta.omega[2, 1, :5] = 0.0, 1.0
    counts = as_counts(as_table(FORMS[form](X)).X)
    exact, single = log_joint(counts, logs(theta)), log_joint(counts, logs(theta), dtype=torch.float32)
    possible = exact > -1e9
    assert (exact - single)[possible].abs().max() < 1e-4
    assert (single[~possible] < -1e9).all()
    (n, *sums), value = expectation(counts.totalled(), logs(theta), dtype=torch.float32)
    (n_exact, *exact_sums), exact_value = expectation(counts, logs(theta))
    assert (value - exact_value).abs().max() < 1e-4 * len(X) + 1e-12 * exact_value.abs().max()
    close(n, n_exact, 1e-4)
    for a, b in zip(sums, exact_sums, strict=True):
        close(a, b, 1e-4)


def test_float32_multiplies_in_float64_those_rows_alone_that_need_it(monkeypatch):
    """Small counts all in float32, a few large ones row by row, many large ones not in float32 at all."""
    asked = []

    def take(counts, rows_N):
        asked.append(len(rows_N))
        return taken(counts, rows_N)

    taken = counts_module.Counts.take
    monkeypatch.setattr(counts_module.Counts, "take", take)
    monkeypatch.setattr(passes_module, "REDONE", 15)
    X, theta = heavy(3)
    theta.lam[1, 0, :5] = 0.0
    some = X.copy()
    some[::50] *= 3000
    for table_ND, expected in ((X, 0), (some, 40)):
        counts = as_counts(as_table(table_ND).X)
        asked.clear()
        single, double = (expectation(counts, logs(theta), dtype=d)[0] for d in (torch.float32, torch.float64))
        assert not torch.equal(single.n, double.n)
        assert max(asked[1:], default=0) <= 15
        assert sum(asked[1:]) == expected  # the first are the rows on which the error is measured
    large, theta = heavy(10_000)
    counts = as_counts(as_table(large).X)
    for a, b in zip(
        *(expectation(counts, logs(theta), dtype=d)[0] for d in (torch.float32, torch.float64)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["uint8", "csr", "csr of many kinds"])
def test_totals_are_the_sums_of_columns(form, arrival):
    X = table(11, missing=0.0 if form == "uint8" else 0.2, scale=4000.0 if "many" in form else 6.0)
    counts = as_counts(as_table(X.astype(np.uint8) if form == "uint8" else sp.csr_array(X)).X)
    blocks = [np.nan_to_num(X), X > 0, np.isnan(X)][: counts.n_columns // D]
    expected = torch.from_numpy(np.concatenate([block.sum(0) for block in blocks]) * 1.0)
    for one in (counts, counts.totalled()):
        close(one.totals(), expected, 1e-15)


def test_float32_keeps_rows_of_large_counts_between_two_components():
    """Rows whose responsibilities are what is left when large terms cancel, among others with small counts."""
    rng = np.random.default_rng(0)
    lam = rng.uniform(1, 3, size=(2, 100))
    lam[:, :50] = rng.uniform(2000, 9000, size=(2, 50))
    even = np.diff(lam, axis=0)[0] / np.diff(np.log(lam), axis=0)[0]  # as likely from the one as from the other
    X = rng.poisson(2, size=(1000, 100)).astype(float)
    X[:, :50] = np.where(rng.random((1000, 1)) < 0.1, (even[:50] + rng.uniform(-1, 1, size=(1000, 50))).round(), 0)
    theta = Parameters(*(torch.from_numpy(v) for v in (np.full(2, 0.5), np.full(lam.shape, 0.9), lam)))
    counts = as_counts(as_table(X).X)
    R_NK = log_joint(counts, logs(theta)).softmax(-1)[X[:, 0] > 0]
    assert ((R_NK > 0.1) & (R_NK < 0.9)).all(1).sum() > 20
    single, double = (expectation(counts, logs(theta), dtype=d)[0] for d in (torch.float32, torch.float64))
    assert not torch.equal(single.n, double.n)
    # An error of 1e-4 in the difference of two log joints moves a responsibility by no more than a quarter of it.
    for a, b in zip(single, double, strict=True):
        close(a, b, 0.25e-4)


def test_float32_is_careful_where_the_rows_measured_show_no_error():
    """Zeros alone where the error is measured, and a row whose sums lose more than 1e-4 where it is not."""
    X, theta = heavy(10_000, n=20_000)
    X[np.arange(len(X)) != 7] = 0
    counts = as_counts(as_table(X).X)
    exact, single = log_joint(counts, logs(theta)), log_joint(counts, logs(theta), dtype=torch.float32)
    assert (exact - single).abs().max() < 1e-4


@pytest.mark.parametrize("lam", [[2e9, 2e9 + 2000], [5e9]])
def test_float32_takes_no_large_rate_for_a_log_0(lam):
    rng = np.random.default_rng(0)
    X = np.where(rng.random((500, 1)) < 0.5, 0, rng.poisson(lam[0], size=(500, 1)))
    theta = Parameters(
        *(
            torch.tensor(v, dtype=torch.float64)
            for v in ([1 / len(lam)] * len(lam), [[0.5]] * len(lam), [[r] for r in lam])
        )
    )
    counts = as_counts(as_table(X).X)
    exact, single = (expectation(counts, logs(theta), dtype=d)[1] for d in (torch.float64, torch.float32))
    assert abs(exact - single) < 1e-4 * len(X)


def test_float32_adds_what_components_have_in_common_in_float64():
    """Large counts that all components expect alike: the log likelihood is large, what tells them apart is small."""
    rng = np.random.default_rng(0)
    lam = rng.uniform(2000, 9000, size=(1, 100)) * (1 + rng.uniform(0, 1e-3, size=(4, 100)))
    X = rng.poisson(lam[rng.integers(4, size=1000)])
    theta = Parameters(*(torch.from_numpy(v) for v in (np.full(4, 0.25), np.full(lam.shape, 0.9), lam)))
    counts = as_counts(as_table(X).X)
    (single, value), (double, exact) = (
        expectation(counts, logs(theta), dtype=d) for d in (torch.float32, torch.float64)
    )
    assert not torch.equal(single.n, double.n)
    assert abs(value - exact) < 1e-4 * len(X)


def test_a_fit_in_float32_ends_where_that_in_float64_does():
    X = zipmix.simulate(500, 8, 3, seed=1).X
    double, single = (zipmix.fit(X, 3, n_starts=3, dtype=dtype) for dtype in ("float64", "float32"))
    assert single.objective == pytest.approx(double.objective, rel=1e-6)
    assert single.objective == pytest.approx(zipmix.log_posterior(X, single.parameters).item(), rel=1e-12)
    assert single.parameters.lam.dtype == torch.float64
    with pytest.raises(InputError, match="dtype must be 'float64' or 'float32', got 'half'"):
        zipmix.fit(X, 3, dtype="half")
