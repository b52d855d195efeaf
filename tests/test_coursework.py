"""The assignment's interface: its functions held against brute force, its notebook run unchanged, its files."""

import itertools
import pickle
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor
from torch.distributions import Bernoulli, Beta, Categorical, Dirichlet, Gamma, Poisson
from typer.testing import CliRunner

import zipmix
from zipmix import coursework
from zipmix.checker.command import register

State = dict[str, Tensor]

PIECES = ("likelihood", "latents", "entropy", "prior")


def problem(seed: int = 0, N: int = 2, D: int = 2, K: int = 2) -> tuple[State, State, State, State]:
    """data, params_state, belief_state, hyperparams with counts of both kinds; beliefs arbitrary where x = 0."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=torch.float64) * 0.8 + 0.1

    X_ND = (uniform(N, D) * 6 - 2).clamp_min(0).floor()
    X_ND[0, 0], X_ND[-1, -1] = 0.0, 3.0
    pi, zeta = uniform(K), uniform(N, K)
    return (
        {"X_ND": X_ND},
        {"pi_K": pi / pi.sum(), "omega_KD": uniform(K, D), "lambd_KD": uniform(K, D) * 5},
        {
            "Ezeta_NK": zeta / zeta.sum(1, keepdim=True),
            "Eb_NKD": torch.where(X_ND[:, None] > 0, 1.0, uniform(N, K, D)),
        },
        {"alpha_K": 1 + uniform(K), **{name: 1 + uniform(1)[0] for name in ("a0", "b0", "e0", "f0")}},
    )


def every_z_and_b(data: State, params: State, beliefs: State) -> list[tuple[float, float, float, float]]:
    """q(Z, B), log q(Z, B), log p(X | B, Z) and log p(B, Z) for every value of all z and all b."""
    X_ND = data["X_ND"]
    (N, D), K = X_ND.shape, len(params["pi_K"])
    rows = []
    for z in itertools.product(range(K), repeat=N):
        omega, lam = params["omega_KD"][list(z)], params["lambd_KD"][list(z)]
        q_b = Bernoulli(beliefs["Eb_NKD"][range(N), list(z)], validate_args=False)
        log_q_z = Categorical(beliefs["Ezeta_NK"]).log_prob(torch.tensor(z)).sum()
        log_p_z = Categorical(params["pi_K"]).log_prob(torch.tensor(z)).sum()
        for bits in itertools.product((0.0, 1.0), repeat=N * D):
            b = torch.tensor(bits, dtype=torch.float64).reshape(N, D)
            # torch keeps a Bernoulli's probability off 0 and 1: a cell with x > 0 and b = 0 has q = 0, not 1e-16.
            sure = (b == 1) | (q_b.probs < 1)
            q = torch.where(sure, q_b.log_prob(b).exp(), 0.0).prod() * log_q_z.exp()
            log_x = torch.where(b == 1, Poisson(lam).log_prob(X_ND), torch.where(X_ND > 0, -torch.inf, 0.0))
            log_b = Bernoulli(omega).log_prob(b).sum()
            if q > 0:
                rows.append((float(q), float(q.log()), float(log_x.sum()), float(log_p_z + log_b)))
    return rows


def brute_force(data: State, params: State, beliefs: State, hyper: State) -> dict[str, float]:
    """The four pieces as sums over every value of all z and all b."""
    rows = every_z_and_b(data, params, beliefs)
    priors = (
        Dirichlet(hyper["alpha_K"]).log_prob(params["pi_K"]),
        Beta(hyper["a0"], hyper["b0"]).log_prob(params["omega_KD"]).sum(),
        Gamma(hyper["e0"], hyper["f0"]).log_prob(params["lambd_KD"]).sum(),
    )
    return {
        "likelihood": sum(q * log_x for q, _, log_x, _ in rows),
        "latents": sum(q * log_zb for q, _, _, log_zb in rows),
        "entropy": -sum(q * log_q for q, log_q, _, _ in rows),
        "prior": float(sum(priors)),
    }


@pytest.mark.parametrize("seed", range(3))
def test_each_piece_of_the_elbo_is_its_sum_over_all_z_and_b(seed: int) -> None:
    data, params, beliefs, hyper = problem(seed)
    expected = brute_force(data, params, beliefs, hyper)
    for name in PIECES:
        piece = getattr(coursework, f"elbo_{name}")(data, params, beliefs, hyper)
        assert piece.shape == ()
        assert piece.item() == pytest.approx(expected[name], rel=1e-12), name
    assert coursework.elbo(data, params, beliefs, hyper).item() == pytest.approx(sum(expected.values()), rel=1e-12)
    assert coursework.elbo_pieces(data, params, beliefs, hyper)._fields == PIECES


def test_the_elbo_is_minus_infinity_at_the_first_beliefs_and_log_p_at_the_exact_ones() -> None:
    data, _, _, hyper = problem(4)
    params, first = coursework.initialize_em(data, hyper)
    assert torch.equal(first["Ezeta_NK"], torch.full((2, 2), 0.5, dtype=torch.float64))
    assert torch.equal(first["Eb_NKD"], torch.full((2, 2, 2), 0.75, dtype=torch.float64))
    expected = brute_force(data, params, first, hyper)
    assert expected["likelihood"] == -torch.inf
    pieces = coursework.elbo_pieces(data, params, first, hyper)
    for name, piece in pieces._asdict().items():
        assert piece.item() == pytest.approx(expected[name], rel=1e-12), name
    assert coursework.elbo(data, params, first, hyper) == -torch.inf

    exact = coursework.e_step(data, None, params, hyper)
    prior = zipmix.Prior(hyper["alpha_K"], *(hyper[f"{name}0"] for name in "abef"))
    theta = zipmix.Parameters(*params.values())
    log_p = float(zipmix.log_posterior(data["X_ND"], theta, prior))
    assert coursework.elbo(data, params, exact, hyper).item() == pytest.approx(log_p, rel=1e-12)


def test_a_row_with_no_mass_on_a_component_does_not_make_the_elbo_infinite() -> None:
    data, params, beliefs, hyper = problem(5)
    beliefs["Ezeta_NK"] = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    beliefs["Eb_NKD"][:, 1] = 0.5  # also where x > 0: q gives this no chance
    assert coursework.elbo(data, params, beliefs, hyper).isfinite()


def test_missing_cells_are_left_out() -> None:
    data, params, beliefs, hyper = problem(6, N=5, D=4, K=3)
    gone = {"X_ND": data["X_ND"].clone()}
    gone["X_ND"][:, :2] = torch.nan
    rest = {"X_ND": data["X_ND"][:, 2:]}
    rest_params = params | {name: params[name][:, 2:] for name in ("omega_KD", "lambd_KD")}
    rest_beliefs = beliefs | {"Eb_NKD": beliefs["Eb_NKD"][..., 2:]}

    found, expected = (
        coursework.e_step(gone, None, params, hyper),
        coursework.e_step(rest, None, rest_params, hyper),
    )
    torch.testing.assert_close(found["Ezeta_NK"], expected["Ezeta_NK"], rtol=1e-12, atol=0)
    torch.testing.assert_close(found["Eb_NKD"][..., 2:], expected["Eb_NKD"], rtol=1e-12, atol=0)
    torch.testing.assert_close(found["Eb_NKD"][..., :2], params["omega_KD"][:, :2].expand(5, 3, 2), rtol=1e-12, atol=0)

    updated, expected = (
        coursework.m_step(gone, beliefs, None, hyper),
        coursework.m_step(rest, rest_beliefs, None, hyper),
    )
    for name in ("omega_KD", "lambd_KD"):
        torch.testing.assert_close(updated[name][:, 2:], expected[name], rtol=1e-12, atol=0)
    torch.testing.assert_close(updated["pi_K"], expected["pi_K"], rtol=1e-12, atol=0)
    for name in ("likelihood", "latents", "entropy"):
        piece = getattr(coursework, f"elbo_{name}")
        assert piece(gone, params, beliefs, hyper).item() == pytest.approx(
            piece(rest, rest_params, rest_beliefs, hyper).item(), rel=1e-12
        )


def test_em_ends_at_beliefs_and_a_bound_that_belong_to_its_parameters() -> None:
    data, _, _, hyper = problem(7, N=40, D=3, K=2)
    state = torch.get_rng_state()
    params, beliefs, values = coursework.em(data, hyper, max_iter=30, verbose=False)
    assert torch.equal(torch.get_rng_state(), state)
    exact = coursework.e_step(data, None, params, hyper)
    assert all(torch.equal(beliefs[name], exact[name]) for name in exact)
    assert values[-1] == pytest.approx(coursework.elbo(data, params, beliefs, hyper).item(), rel=1e-10)
    assert all(later >= earlier - 1e-10 * abs(earlier) for earlier, later in itertools.pairwise(values))
    again, _, _ = coursework.em(data, hyper, max_iter=30, verbose=False)
    assert all(torch.equal(params[name], again[name]) for name in params)
    other, _, _ = coursework.em(data, hyper, max_iter=1, seed=1, verbose=False)
    assert not torch.equal(params["pi_K"], other["pi_K"])


# Cells as students write them around the assignment's functions: plain pickle, float32, a loop of their own, plots.
NOTEBOOK = (
    """
import pickle
import torch
import matplotlib.pyplot as plt
from zipmix.coursework import (
    initialize_em, e_step, m_step, elbo, em, compute_affinity_matrix,
    poisson_logpmf, dirichlet_logpdf, gamma_logpdf, beta_logpdf,
)
""",
    """
with open("data.pkl", "rb") as f:
    data = pickle.load(f)
with open("hyperparams.pkl", "rb") as f:
    hyperparams = pickle.load(f)
N, D = data["X_ND"].shape
K = hyperparams["alpha_K"].shape[0]
""",
    """
params_state, belief_state = initialize_em(data, hyperparams, seed=617)
first_elbo = elbo(data, params_state, belief_state, hyperparams)
my_elbo_vals = []
for it in range(12):
    belief_state = e_step(data, belief_state, params_state, hyperparams)
    my_elbo_vals.append(elbo(data, params_state, belief_state, hyperparams).item())
    params_state = m_step(data, belief_state, params_state, hyperparams)
assert belief_state["Ezeta_NK"].shape == (N, K) and belief_state["Eb_NKD"].shape == (N, K, D)
assert params_state["pi_K"].shape == (K,) and params_state["lambd_KD"].shape == (K, D)
log_prior = dirichlet_logpdf(params_state["pi_K"], hyperparams["alpha_K"])
log_prior += beta_logpdf(params_state["omega_KD"], hyperparams["a0"], hyperparams["b0"]).sum()
log_prior += gamma_logpdf(params_state["lambd_KD"], hyperparams["e0"], hyperparams["f0"]).sum()
log_x = poisson_logpmf(data["X_ND"][:, None, :], params_state["lambd_KD"][None])
assert log_x.shape == (N, K, D)
""",
    """
params_state, belief_state, elbo_vals = em(data, hyperparams, max_iter=30, tol=1e-7)
plt.plot(elbo_vals[10:])
A = compute_affinity_matrix(params_state, belief_state)
plt.matshow(A.numpy())
plt.close("all")
""",
    """
with open("test_data.pkl", "rb") as f:
    test = pickle.load(f)
Y_obs, Y_miss = test["Y_MD_obs"], test["Y_MD_miss"]
omega, lambd = params_state["omega_KD"], params_state["lambd_KD"]
observed = {"pi_K": params_state["pi_K"], "omega_KD": omega[:, 3:], "lambd_KD": lambd[:, 3:]}
beliefs = e_step({"X_ND": Y_obs}, None, observed, hyperparams)
prediction = beliefs["Ezeta_NK"] @ (omega * lambd)[:, :3]
rmse = ((prediction - Y_miss) ** 2).mean().sqrt().item()
naive = ((data["X_ND"][:, :3].mean(0) - Y_miss) ** 2).mean().sqrt().item()
""",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coursework")
    coursework.write_data(folder / "new")
    return folder / "new"


def test_a_students_notebook_runs_unchanged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells: dict[str, object] = {}
    for cell in NOTEBOOK:
        exec(cell, cells)
    capsys.readouterr()  # the progress bar that em shows, as the assignment's own does
    values: dict[str, State] = {name: cells[name] for name in ("params_state", "belief_state")}  # type: ignore[misc]
    assert cells["first_elbo"] == -torch.inf
    assert {value.dtype for state in values.values() for value in state.values()} == {torch.float32}
    own, given = cells["my_elbo_vals"], cells["elbo_vals"]
    assert isinstance(own, list)
    assert isinstance(given, list)
    # The student's loop and em are the same iterations; float32 parameters in between round to 1e-6.
    assert own == pytest.approx(given[:12], rel=1e-5)
    A = cells["A"]
    assert isinstance(A, Tensor)
    assert A.shape == (930, 930)
    assert torch.equal(A.diagonal(), torch.ones(930))
    rmse, naive = cells["rmse"], cells["naive"]
    assert isinstance(rmse, float)
    assert isinstance(naive, float)
    assert rmse < 0.95 * naive
    prediction = coursework.complete_matrix(coursework.read_data(folder).test_data, values["params_state"])
    torch.testing.assert_close(prediction, cells["prediction"], rtol=1e-5, atol=1e-5)


def test_the_files_have_the_assignments_shape_and_rows_come_cluster_by_cluster(folder: Path) -> None:
    data, hyperparams, test_data = coursework.read_data(folder)
    assert {name: tuple(value.shape) for name, value in (data | hyperparams | test_data).items()} == {
        "X_ND": (930, 20),
        **{"a0": (), "b0": (), "e0": (), "f0": (), "alpha_K": (10,)},
        **{"Y_MD_obs": (100, 17), "Y_MD_miss": (100, 3)},
    }
    with (folder / "data.pkl").open("rb") as file:
        assert torch.equal(pickle.load(file)["X_ND"], data["X_ND"])
    labels = zipmix.fit(data["X_ND"], 10, method="em", n_starts=5, max_iter=100).predict(data["X_ND"])
    # Rows in another order would change the label some 800 times; a cluster may be found in two parts.
    assert int((labels[1:] != labels[:-1]).sum()) < 150


def test_files_are_never_written_over_and_one_seed_gives_the_same_ones(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(zipmix.InputError, match=r"data\.pkl exists already"):
        coursework.write_data(folder)
    coursework.write_data(tmp_path / "same")
    coursework.write_data(tmp_path / "other", seed=1)
    X_ND = coursework.read_data(folder).data["X_ND"]
    assert torch.equal(coursework.read_data(tmp_path / "same").data["X_ND"], X_ND)
    assert not torch.equal(coursework.read_data(tmp_path / "other").data["X_ND"], X_ND)
    (tmp_path / "file").write_text("")
    with pytest.raises(zipmix.InputError, match="cannot be made"):
        coursework.write_data(tmp_path / "file" / "below")


def test_files_that_lack_a_key_or_are_missing_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(zipmix.InputError, match=r"there is no file .*data\.pkl"):
        coursework.read_data(tmp_path)
    for name in coursework.FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "hyperparams.pkl").write_bytes(pickle.dumps({"a0": 1.0, "b0": torch.ones(())}))
    with pytest.raises(zipmix.InputError, match=r"hyperparams\.pkl lacks e0, f0, alpha_K; it must be"):
        coursework.read_data(tmp_path)
    (tmp_path / "hyperparams.pkl").write_bytes(pickle.dumps([1.0]))
    with pytest.raises(zipmix.InputError, match="lacks a0, b0, e0, f0, alpha_K"):
        coursework.read_data(tmp_path)


def test_the_command_writes_the_files_and_reads_them_where_they_are(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    run = CliRunner().invoke
    folder = tmp_path / "new"
    first = run(app, ["coursework", str(folder), "--seed", "3"])
    assert first.exit_code == 0
    assert f"wrote {folder / 'data.pkl'}: X_ND (930, 20)" in first.output
    before = (folder / "data.pkl").read_bytes()
    second = run(app, ["coursework", str(folder)])
    assert second.exit_code == 0
    assert f"read {folder / 'test_data.pkl'}: Y_MD_obs (100, 17), Y_MD_miss (100, 3)" in second.output
    assert (folder / "data.pkl").read_bytes() == before
    (folder / "hyperparams.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    third = run(app, ["coursework", str(folder)])
    assert third.exit_code == 2
    assert "holds os.system" in third.stderr
    assert third.stderr.count("\n") == 1
