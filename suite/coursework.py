"""The assignment's interface: its names and dictionaries, each function a thin face over models/ and inference/.

    data         {"X_ND": (N, D) counts}
    hyperparams  {"a0", "b0", "e0", "f0": scalars, "alpha_K": (K,)}                   equations (1)-(3)
    params_state {"pi_K": (K,), "omega_KD": (K, D), "lambd_KD": (K, D)}
    belief_state {"Ezeta_NK": (N, K), "Eb_NKD": (N, K, D)}     E[zeta_ik] = q(z_i = k), E[b_id | z_i = k]
    latent_state {"z_N": (N,) whole numbers, "b_ND": (N, D) zeros and ones}           for the complete conditionals

omega is the share of the Poisson part. Results have the floating type of the parameters that came in (of the data,
where none did); the work in between is done in float64. Only here is an N x K x D tensor made: the interface asks
for it.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, distributions

from zipmix.counts.checks import InputError, check_whole
from zipmix.counts.store import as_counts
from zipmix.files.safe_pickle import load_pickle
from zipmix.inference.em import em as run_em
from zipmix.inference.start import starts
from zipmix.models import conjugate, kernel
from zipmix.models.parameters import Parameters, Prior, check_prior
from zipmix.models.zip_mixture import simulate

State = Mapping[str, Tensor]

# The assignment's data: rows, columns, clusters, new rows, and how many of the first columns are missing in those.
N, D, K, M, MISSING = 930, 20, 10, 100, 3

# The assignment's files and what they hold.
FILES = {
    "data.pkl": ("X_ND",),
    "hyperparams.pkl": ("a0", "b0", "e0", "f0", "alpha_K"),
    "test_data.pkl": ("Y_MD_obs", "Y_MD_miss"),
}

# The beliefs that the assignment starts from.
FIRST_B = 0.75


class ELBO(NamedTuple):
    """The evidence lower bound in its four pieces (question 2c), each a scalar tensor."""

    likelihood: Tensor  # E_q[log p(X | B, Z)]
    latents: Tensor  # E_q[log p(B, Z)]
    entropy: Tensor  # -E_q[log q(B, Z)]
    prior: Tensor  # log p(Theta)


def initialize_em(data: State, hyperparams: State, seed: int = 617) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A draw of the parameters from the prior, with beliefs 1 / K and 0.75.

    Args:
        data: X_ND.
        hyperparams: all > 0.
        seed: of the draw; the global random state is left as it was.
    Returns:
        params_state, belief_state
    """
    X_ND = data["X_ND"]
    prior = _prior(hyperparams)
    n_components = len(hyperparams["alpha_K"])
    (theta,) = zip(
        *starts(
            as_counts(X_ND.double()), prior, n_components=n_components, n_starts=1, init="prior", start=None, seed=seed
        ),
        strict=True,
    )
    Ezeta_NK = torch.full((len(X_ND), n_components), 1 / n_components)
    Eb_NKD = torch.full((len(X_ND), n_components, X_ND.shape[1]), FIRST_B)
    dtype = _float(X_ND)
    return _params(Parameters(*theta), dtype), {"Ezeta_NK": Ezeta_NK.to(dtype), "Eb_NKD": Eb_NKD.to(dtype)}


def e_step(data: State, belief_state: State | None, params_state: State, hyperparams: State) -> dict[str, Tensor]:
    """E[zeta_ik] and E[b_id | z_i = k] at the parameters (question 2a); the beliefs that come in play no part.

    A missing cell (NaN) is left out of E[zeta_ik], and its E[b_id | z_i = k] is omega_kd.

    Returns:
        belief_state
    """
    X_ND = data["X_ND"].double()
    tables = kernel.logs(_theta(params_state))
    R_NK, _ = kernel.responsibilities(kernel.log_joint(as_counts(X_ND), tables))
    X_N1D = X_ND[:, None]
    Eb_NKD = torch.where(X_N1D == 0, kernel.rho(tables), 1.0)
    Eb_NKD = torch.where(X_N1D.isnan(), tables.u.exp(), Eb_NKD)
    dtype = _float(params_state["pi_K"])
    return {"Ezeta_NK": R_NK.to(dtype).contiguous(), "Eb_NKD": Eb_NKD.to(dtype)}


def m_step(data: State, belief_state: State, params_state: State | None, hyperparams: State) -> dict[str, Tensor]:
    """The modes of the complete conditionals at the expected statistics (question 2b).

    Returns:
        params_state
    """
    expected = _statistics(data, belief_state["Ezeta_NK"], belief_state["Eb_NKD"])
    theta = conjugate.mode(conjugate.complete_conditionals(expected, _prior(hyperparams)))
    return _params(theta, _float(belief_state["Ezeta_NK"]))


def elbo(data: State, params_state: State, belief_state: State, hyperparams: State) -> Tensor:
    """The ELBO of any beliefs, all constants in: the sum of the four pieces.

    It is minus infinity where q gives b = 0 a chance although x > 0, as the first beliefs do.
    """
    dtype = _float(params_state["pi_K"])
    pieces = _elbo_pieces(data, params_state, belief_state, hyperparams)
    return torch.stack(pieces).sum().to(dtype)


def elbo_pieces(data: State, params_state: State, belief_state: State, hyperparams: State) -> ELBO:
    """The four pieces of the ELBO (question 2c)."""
    dtype = _float(params_state["pi_K"])
    return ELBO(*(piece.to(dtype) for piece in _elbo_pieces(data, params_state, belief_state, hyperparams)))


def elbo_likelihood(data: State, params_state: State, belief_state: State, hyperparams: State) -> Tensor:
    """E_q[log p(X | B, Z)]; minus infinity where q gives b = 0 a chance although x > 0."""
    return elbo_pieces(data, params_state, belief_state, hyperparams).likelihood


def elbo_latents(data: State, params_state: State, belief_state: State, hyperparams: State) -> Tensor:
    """E_q[log p(B, Z)]."""
    return elbo_pieces(data, params_state, belief_state, hyperparams).latents


def elbo_entropy(data: State, params_state: State, belief_state: State, hyperparams: State) -> Tensor:
    """-E_q[log q(B, Z)], the entropy of the beliefs."""
    return elbo_pieces(data, params_state, belief_state, hyperparams).entropy


def elbo_prior(data: State, params_state: State, belief_state: State, hyperparams: State) -> Tensor:
    """log p(pi) + log p(omega) + log p(lambda)."""
    return elbo_pieces(data, params_state, belief_state, hyperparams).prior


def em(
    data: State,
    hyperparams: State,
    max_iter: int = 100,
    tol: float = 1e-7,
    seed: int = 617,
    verbose: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """EM from a draw of the prior, as the assignment runs it: one start, plain steps.

    Args:
        data: X_ND.
        hyperparams: alpha_K, a0, b0, e0 >= 1.
        max_iter: most iterations.
        tol: relative gain of the ELBO at which to stop.
        seed: of the start.
        verbose: whether to show a progress bar.
    Returns:
        params_state; the belief_state that belongs to it; and the ELBO after each E-step, start included, which is
        log p(X, Theta), since these beliefs are exact.
    """
    params, _ = initialize_em(data, hyperparams, seed)
    prior = _prior(hyperparams)
    fitted = run_em(
        data["X_ND"],
        len(hyperparams["alpha_K"]),
        prior=prior,
        start=_theta(params),
        accelerate=False,
        max_iter=max_iter,
        tolerance=tol,
        progress=verbose,
    )
    found = _params(fitted.parameters, _float(data["X_ND"]))
    return found, e_step(data, None, found, hyperparams), fitted.trace.tolist()


def compute_affinity_matrix(params_state: State | None, belief_state: State) -> Tensor:
    """A_ij = P(z_i = z_j | X, Theta), (N, N), with ones on the diagonal (question 4a)."""
    Ezeta_NK = belief_state["Ezeta_NK"]
    return (Ezeta_NK @ Ezeta_NK.T).fill_diagonal_(1.0)


def complete_matrix(data: State, params_state: State) -> Tensor:
    """E[Y_miss | Y_obs, Theta] for rows whose first columns are missing (question 5).

    Missing cells are left out of the likelihood: sum_k r_ik omega_kd lambda_kd with r from the observed columns alone.

    Args:
        data: Y_MD_obs, (M, D - d) counts of the last columns.
        params_state: of all D columns.
    Returns:
        (M, d) expected counts of the first d columns.
    """
    theta = _theta(params_state)
    observed = data["Y_MD_obs"].double()
    n_missing = theta.lam.shape[1] - observed.shape[1]
    Y_MD = torch.cat([torch.full((len(observed), n_missing), torch.nan, dtype=torch.float64), observed], dim=1)
    R_MK, _ = kernel.responsibilities(kernel.log_joint(as_counts(Y_MD), kernel.logs(theta)))
    return (R_MK @ (theta.omega * theta.lam))[:, :n_missing].to(_float(params_state["pi_K"]))


def conditional_pi(
    data: State, latent_state: State, params_state: State, hyperparams: State
) -> distributions.Dirichlet:
    """p(pi | rest), question 1a: a Dirichlet over K weights."""
    return _conditionals(data, latent_state, hyperparams)[0]


def conditional_omega(data: State, latent_state: State, params_state: State, hyperparams: State) -> distributions.Beta:
    """p(omega_kd | rest), question 1b: a Beta, batch shape (K, D)."""
    return _conditionals(data, latent_state, hyperparams)[1]


def conditional_lambda(
    data: State, latent_state: State, params_state: State, hyperparams: State
) -> distributions.Gamma:
    """p(lambda_kd | rest), question 1c: a Gamma, batch shape (K, D)."""
    return _conditionals(data, latent_state, hyperparams)[2]


def conditional_b(data: State, latent_state: State, params_state: State, hyperparams: State) -> distributions.Bernoulli:
    """p(b_id | z_i, rest), question 1d: a Bernoulli, batch shape (N, D)."""
    Eb_NKD = e_step(data, None, params_state, hyperparams)["Eb_NKD"]
    z_N = latent_state["z_N"].long()
    return distributions.Bernoulli(Eb_NKD[torch.arange(len(z_N)), z_N], validate_args=False)


def conditional_z(
    data: State, latent_state: State, params_state: State, hyperparams: State
) -> distributions.Categorical:
    """p(z_i | B, rest), b given, question 1e: a Categorical over K, batch shape (N,)."""
    log_pi, u, v, w, l = kernel.logs(_theta(params_state))  # noqa: E741
    b_ND = latent_state["b_ND"].double()
    logits_NK = log_pi + b_ND @ (u - w).T + (1 - b_ND) @ v.T + (b_ND * data["X_ND"].double()) @ l.T
    return distributions.Categorical(logits=logits_NK, validate_args=False)


def conditional_z_marginal(
    data: State, latent_state: State, params_state: State, hyperparams: State
) -> distributions.Categorical:
    """p(z_i | rest) with b summed out, question 1e: a Categorical over K, batch shape (N,)."""
    counts = as_counts(data["X_ND"].double())
    logits_NK = kernel.log_joint(counts, kernel.logs(_theta(params_state)))
    return distributions.Categorical(logits=logits_NK, validate_args=False)


def poisson_logpmf(x: Tensor, rate: Tensor) -> Tensor:
    """log Poisson(x | rate), elementwise."""
    return distributions.Poisson(rate, validate_args=False).log_prob(x)


def dirichlet_logpdf(x: Tensor, alpha: Tensor) -> Tensor:
    """log Dirichlet(x | alpha) over the last axis."""
    return distributions.Dirichlet(alpha, validate_args=False).log_prob(x)


def gamma_logpdf(x: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
    """log Gamma(x | concentration, rate), elementwise; rate, not scale."""
    return distributions.Gamma(concentration, rate, validate_args=False).log_prob(x)


def beta_logpdf(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """log Beta(x | alpha, beta), elementwise."""
    return distributions.Beta(alpha, beta, validate_args=False).log_prob(x)


def write_data(folder: str | Path, *, seed: int = 617) -> list[Path]:
    """Writes data of the assignment's shape: data.pkl, hyperparams.pkl and test_data.pkl.

    data.pkl holds X_ND (930, 20), rows ordered by true cluster; hyperparams.pkl the hyperparameters of 10 clusters;
    test_data.pkl Y_MD_obs (100, 17) and Y_MD_miss (100, 3), new rows of the same mixture cut after the third column.

    Args:
        folder: where to write; made if it does not exist.
        seed: of the draw.
    Returns:
        The three paths.
    Raises:
        InputError: one of the files exists already, or the folder cannot be made.
    """
    check_whole(seed, "seed", at_least=0)
    folder = Path(folder)
    paths = [folder / name for name in FILES]
    for path in paths:
        if path.exists():
            raise InputError(f"folder: {path} exists already; choose another folder or move the file.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder: {folder} cannot be made ({error.strerror}); choose another one.") from None
    prior = Prior(alpha=5.0, a=2.0, b=2.0, e=2.0, f=0.25)
    drawn = simulate(N + M, D, K, prior=prior, seed=seed)
    X_ND, Y_MD = drawn.X[:N].float(), drawn.X[N:].float()
    hyperparams = {f"{name}0": torch.tensor(getattr(prior, name)) for name in "abef"}
    contents: list[dict[str, Tensor]] = [
        {"X_ND": X_ND[drawn.z[:N].argsort(stable=True)]},
        hyperparams | {"alpha_K": torch.tensor([prior.alpha] * K)},
        {"Y_MD_obs": Y_MD[:, MISSING:].clone(), "Y_MD_miss": Y_MD[:, :MISSING].clone()},
    ]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(pickle.dumps(content))
    return paths


class Files(NamedTuple):
    """What the assignment's three files hold."""

    data: dict[str, Tensor]  # X_ND (N, D)
    hyperparams: dict[str, Tensor]  # a0, b0, e0, f0, alpha_K (K,)
    test_data: dict[str, Tensor]  # Y_MD_obs (M, D - 3), Y_MD_miss (M, 3)


def read_data(folder: str | Path) -> Files:
    """Reads data.pkl, hyperparams.pkl and test_data.pkl; opening them can run no code.

    Args:
        folder: where they lie.
    Raises:
        InputError: a file is missing, holds anything but tensors, plain containers and numbers, or lacks a key.
    """
    return Files(*(_read_file(Path(folder) / name, keys) for name, keys in FILES.items()))


def _read_file(path: Path, keys: tuple[str, ...]) -> dict[str, Tensor]:
    content = load_pickle(path)
    found = content if isinstance(content, dict) else {}
    missing = [key for key in keys if not isinstance(found.get(key), (Tensor, int, float))]
    if missing:
        raise InputError(
            f"folder: {path} lacks {', '.join(missing)}; it must be a dictionary of tensors with {', '.join(keys)}."
        )
    return {key: torch.as_tensor(found[key]) for key in keys}


def _prior(hyperparams: State) -> Prior:
    alpha_K = torch.as_tensor(hyperparams["alpha_K"])
    scalars = {name: torch.as_tensor(hyperparams[f"{name}0"]).double().reshape(()) for name in "abef"}
    return check_prior(Prior(alpha=alpha_K.double(), **scalars), len(alpha_K))


def _theta(params_state: State) -> Parameters:
    return Parameters(*(params_state[name].double() for name in ("pi_K", "omega_KD", "lambd_KD")))


def _params(theta: Parameters, dtype: torch.dtype) -> dict[str, Tensor]:
    return dict(zip(("pi_K", "omega_KD", "lambd_KD"), (value.to(dtype) for value in theta), strict=True))


def _float(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.is_floating_point() else torch.float64


def _statistics(data: State, Ezeta_NK: Tensor, Eb_NKD: Tensor) -> kernel.Statistics:
    """The kernel's statistics with beliefs about b that may differ from row to row."""
    X_ND, R_NK = data["X_ND"].double(), Ezeta_NK.double()
    observed = kernel.statistics(as_counts(X_ND), R_NK, lambda zeros_KD: zeros_KD)
    b_NKD = Eb_NKD.double().masked_fill(X_ND.isnan()[:, None], 0.0)
    return observed._replace(m=torch.einsum("nk,nkd->kd", R_NK, b_NKD))


def _conditionals(
    data: State, latent_state: State, hyperparams: State
) -> tuple[distributions.Dirichlet, distributions.Beta, distributions.Gamma]:
    prior = _prior(hyperparams)
    z_NK = torch.nn.functional.one_hot(latent_state["z_N"].long(), len(hyperparams["alpha_K"]))
    given = _statistics(data, z_NK, latent_state["b_ND"][:, None].expand(-1, z_NK.shape[1], -1))
    return conjugate.as_distributions(conjugate.complete_conditionals(given, prior))


def _elbo_pieces(data: State, params_state: State, belief_state: State, hyperparams: State) -> ELBO:
    theta = _theta(params_state)
    R_NK, b_NKD = belief_state["Ezeta_NK"].double(), belief_state["Eb_NKD"].double()
    n, c, s, _, m = _statistics(data, R_NK, b_NKD)
    xlogy, entr = torch.special.xlogy, torch.special.entr
    counts = as_counts(data["X_ND"].double())
    likelihood = (xlogy(s, theta.lam) - m * theta.lam).sum() - (R_NK.sum(1) * counts.log_factorial_N).sum()
    impossible = (data["X_ND"][:, None] > 0) & (R_NK[..., None] * (1 - b_NKD) > 0)
    likelihood = torch.where(impossible.any(), -torch.inf, likelihood)
    latents = xlogy(n, theta.pi).sum() + (xlogy(m, theta.omega) + xlogy((c - m).clamp_min(0.0), 1 - theta.omega)).sum()
    observed_N1D = ~data["X_ND"].isnan()[:, None]
    entropy = entr(R_NK).sum() + (R_NK[..., None] * observed_N1D * (entr(b_NKD) + entr(1 - b_NKD))).sum()
    prior = conjugate.log_density(conjugate.as_conditionals(_prior(hyperparams)), theta)
    return ELBO(likelihood, latents, entropy, prior)
