"""An empty solution for `zipmix check`: fill in what you have derived and delete the rest.

Each function is checked on its own; the ones that you leave out are not checked. Arguments keep their names.

    data         {"X_ND": (N, D) counts}
    hyperparams  {"a0", "b0", "e0", "f0": scalars, "alpha_K": (K,)}
    params_state {"pi_K": (K,), "omega_KD": (K, D), "lambd_KD": (K, D)}
    belief_state {"Ezeta_NK": (N, K), "Eb_NKD": (N, K, D)}      E[zeta_ik], E[b_id | z_i = k]
    latent_state {"z_N": (N,) whole numbers 0..K-1, "b_ND": (N, D) zeros and ones}

The model: pi ~ Dirichlet(alpha), omega_kd ~ Beta(a0, b0), lambda_kd ~ Gamma(shape e0, rate f0), z_i ~ Categorical(pi),
b_id ~ Bernoulli(omega_kd) with k = z_i, x_id ~ Poisson(lambda_kd) if b_id = 1 and 0 if b_id = 0.
omega is the share of the Poisson part. f0 is a rate. All tensors are torch tensors, in float64 or float32.
"""

from torch import Tensor
from torch.distributions import Bernoulli, Beta, Categorical, Dirichlet, Gamma

State = dict[str, Tensor]


def conditional_pi(data: State, latent_state: State, params_state: State, hyperparams: State) -> Dirichlet:
    """Question 1a: p(pi | rest), a Dirichlet over K weights."""
    raise NotImplementedError


def conditional_omega(data: State, latent_state: State, params_state: State, hyperparams: State) -> Beta:
    """Question 1b: p(omega_kd | rest), a Beta of batch shape (K, D)."""
    raise NotImplementedError


def conditional_lambda(data: State, latent_state: State, params_state: State, hyperparams: State) -> Gamma:
    """Question 1c: p(lambda_kd | rest), a Gamma of batch shape (K, D)."""
    raise NotImplementedError


def conditional_b(data: State, latent_state: State, params_state: State, hyperparams: State) -> Bernoulli:
    """Question 1d: p(b_id | z_i, rest), a Bernoulli of batch shape (N, D)."""
    raise NotImplementedError


def conditional_z(data: State, latent_state: State, params_state: State, hyperparams: State) -> Categorical:
    """Question 1e: p(z_i | B, rest) with b given, a Categorical over K of batch shape (N,)."""
    raise NotImplementedError


def conditional_z_marginal(data: State, latent_state: State, params_state: State, hyperparams: State) -> Categorical:
    """Question 1e: p(z_i | rest) with b summed out, a Categorical over K of batch shape (N,)."""
    raise NotImplementedError


def e_step(data: State, belief_state: State, params_state: State, hyperparams: State) -> State:
    """Question 2a: the belief_state {"Ezeta_NK", "Eb_NKD"} at the parameters, b summed out of E[zeta]."""
    raise NotImplementedError


def m_step(data: State, belief_state: State, params_state: State, hyperparams: State) -> State:
    """Question 2b: the params_state {"pi_K", "omega_KD", "lambd_KD"}, modes of the conditionals at the beliefs."""
    raise NotImplementedError


def elbo(data: State, params_state: State, belief_state: State, hyperparams: State) -> Tensor:
    """Question 2c: the ELBO of any beliefs, all constants in, as a scalar: the sum of the four pieces below.

    It is minus infinity where the beliefs give b = 0 a chance although x > 0.
    """
    raise NotImplementedError


def elbo_likelihood(data: State, params_state: State, belief_state: State, hyperparams: State) -> Tensor:
    """Question 2c: E_q[log p(X | B, Z)]."""
    raise NotImplementedError


def elbo_latents(data: State, params_state: State, belief_state: State, hyperparams: State) -> Tensor:
    """Question 2c: E_q[log p(B, Z)]."""
    raise NotImplementedError


def elbo_entropy(data: State, params_state: State, belief_state: State, hyperparams: State) -> Tensor:
    """Question 2c: -E_q[log q(B, Z)]."""
    raise NotImplementedError


def elbo_prior(data: State, params_state: State, belief_state: State, hyperparams: State) -> Tensor:
    """Question 2c: log p(pi) + log p(omega) + log p(lambda)."""
    raise NotImplementedError


def em(
    data: State, hyperparams: State, max_iter: int = 100, tol: float = 1e-7, seed: int = 617, verbose: bool = True
) -> tuple[State, State, list[float]]:
    """Question 3c: params_state, the belief_state that belongs to it, and the ELBO of every iteration.

    While em is checked, initialize_em, e_step, m_step and elbo are those of zipmix.coursework.
    """
    raise NotImplementedError


def compute_affinity_matrix(params_state: State, belief_state: State) -> Tensor:
    """Question 4a: A_ij = P(z_i = z_j | X), (N, N); ones on the diagonal or the formula carried through."""
    raise NotImplementedError


def complete_matrix(data: State, params_state: State) -> Tensor:
    """Question 5: E[Y_miss | Y_obs], (M, d), for rows whose first d of D columns are missing.

    Here data is {"Y_MD_obs": (M, D - d) counts of the last columns, "Y_MD_miss": (M, d) NaN}.
    """
    raise NotImplementedError


def poisson_logpmf(x: Tensor, rate: Tensor) -> Tensor:
    """log Poisson(x | rate), elementwise."""
    raise NotImplementedError


def dirichlet_logpdf(x: Tensor, alpha: Tensor) -> Tensor:
    """log Dirichlet(x | alpha), a scalar."""
    raise NotImplementedError


def gamma_logpdf(x: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
    """log Gamma(x | concentration, rate), elementwise."""
    raise NotImplementedError


def beta_logpdf(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """log Beta(x | alpha, beta), elementwise."""
    raise NotImplementedError
