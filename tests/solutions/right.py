"""A right solution as a student writes it: broadcasting over N x K x D, everything in log space."""

import torch
from torch.distributions import Bernoulli, Beta, Categorical, Dirichlet, Gamma


def poisson_logpmf(x, rate):
    return x * torch.log(rate) - rate - torch.lgamma(x + 1)


def dirichlet_logpdf(x, alpha):
    log_norm = torch.lgamma(alpha.sum()) - torch.lgamma(alpha).sum()
    return log_norm + ((alpha - 1) * torch.log(x)).sum()


def gamma_logpdf(x, concentration, rate):
    return concentration * torch.log(rate) - torch.lgamma(concentration) + (concentration - 1) * torch.log(x) - rate * x


def beta_logpdf(x, alpha, beta):
    log_norm = torch.lgamma(alpha + beta) - torch.lgamma(alpha) - torch.lgamma(beta)
    return log_norm + (alpha - 1) * torch.log(x) + (beta - 1) * torch.log(1 - x)


def conditional_pi(data, latent_state, params_state, hyperparams):
    K = len(hyperparams["alpha_K"])
    counts = torch.bincount(latent_state["z_N"], minlength=K)
    return Dirichlet(hyperparams["alpha_K"] + counts)


def one_hot(latent_state, hyperparams):
    K = len(hyperparams["alpha_K"])
    return (latent_state["z_N"][:, None] == torch.arange(K)).double()


def conditional_omega(data, latent_state, params_state, hyperparams):
    zeta = one_hot(latent_state, hyperparams)
    ones = zeta.T @ latent_state["b_ND"]
    zeros = zeta.T @ (1 - latent_state["b_ND"])
    return Beta(hyperparams["a0"] + ones, hyperparams["b0"] + zeros)


def conditional_lambda(data, latent_state, params_state, hyperparams):
    zeta = one_hot(latent_state, hyperparams)
    b = latent_state["b_ND"]
    total = zeta.T @ (b * data["X_ND"])
    cells = zeta.T @ b
    return Gamma(hyperparams["e0"] + total, hyperparams["f0"] + cells)


def conditional_b(data, latent_state, params_state, hyperparams):
    z = latent_state["z_N"]
    w, rate = params_state["omega_KD"][z], params_state["lambd_KD"][z]
    zero = w * torch.exp(-rate) / (w * torch.exp(-rate) + 1 - w)
    return Bernoulli(torch.where(data["X_ND"] == 0, zero, torch.ones_like(zero)))


def conditional_z(data, latent_state, params_state, hyperparams):
    X, b = data["X_ND"][:, None, :], latent_state["b_ND"][:, None, :]
    w, rate = params_state["omega_KD"], params_state["lambd_KD"]
    cell = b * (torch.log(w) + poisson_logpmf(X, rate)) + (1 - b) * torch.log(1 - w)
    return Categorical(logits=torch.log(params_state["pi_K"]) + cell.sum(-1))


def log_joint(data, params_state):
    X = data["X_ND"][:, None, :]
    w, rate = params_state["omega_KD"], params_state["lambd_KD"]
    positive = torch.log(w) + poisson_logpmf(X, rate)
    zero = torch.log(w * torch.exp(-rate) + 1 - w)
    return torch.log(params_state["pi_K"]) + torch.where(X > 0, positive, zero).sum(-1)


def conditional_z_marginal(data, latent_state, params_state, hyperparams):
    return Categorical(logits=log_joint(data, params_state))


def e_step(data, belief_state, params_state, hyperparams):
    w, rate = params_state["omega_KD"], params_state["lambd_KD"]
    logits = log_joint(data, params_state)
    Ezeta = torch.exp(logits - torch.logsumexp(logits, dim=1, keepdim=True))
    zero = w * torch.exp(-rate) / (w * torch.exp(-rate) + 1 - w)
    Eb = torch.where(data["X_ND"][:, None, :] > 0, torch.ones_like(zero), zero)
    return {"Ezeta_NK": Ezeta, "Eb_NKD": Eb}


def m_step(data, belief_state, params_state, hyperparams):
    X, Ezeta, Eb = data["X_ND"], belief_state["Ezeta_NK"], belief_state["Eb_NKD"]
    a0, b0, e0, f0 = (hyperparams[name] for name in ("a0", "b0", "e0", "f0"))
    n = Ezeta.sum(0)
    m = (Ezeta[:, :, None] * Eb).sum(0)
    s = (Ezeta[:, :, None] * Eb * X[:, None, :]).sum(0)
    pi = n + hyperparams["alpha_K"] - 1
    pi = pi / pi.sum()
    omega = (m + a0 - 1) / (n[:, None] + a0 + b0 - 2)
    lambd = (s + e0 - 1) / (m + f0)
    return {"pi_K": pi, "omega_KD": omega, "lambd_KD": lambd}


def elbo_likelihood(data, params_state, belief_state, hyperparams):
    X = data["X_ND"][:, None, :]
    Ezeta, Eb = belief_state["Ezeta_NK"][:, :, None], belief_state["Eb_NKD"]
    log_delta = torch.where(X > 0, -torch.inf, 0.0)
    structural = torch.where(Ezeta * (1 - Eb) > 0, log_delta, torch.zeros_like(log_delta))
    structural = torch.where(structural == 0, torch.zeros_like(structural), structural)
    return (Ezeta * Eb * poisson_logpmf(X, params_state["lambd_KD"])).sum() + structural.sum()


def elbo_latents(data, params_state, belief_state, hyperparams):
    Ezeta, Eb = belief_state["Ezeta_NK"], belief_state["Eb_NKD"]
    w = params_state["omega_KD"]
    log_z = (Ezeta * torch.log(params_state["pi_K"])).sum()
    log_b = (Ezeta[:, :, None] * (Eb * torch.log(w) + (1 - Eb) * torch.log(1 - w))).sum()
    return log_z + log_b


def elbo_entropy(data, params_state, belief_state, hyperparams):
    Ezeta, Eb = belief_state["Ezeta_NK"], belief_state["Eb_NKD"]
    entropy_z = -torch.xlogy(Ezeta, Ezeta).sum()
    entropy_b = -(Ezeta[:, :, None] * (torch.xlogy(Eb, Eb) + torch.xlogy(1 - Eb, 1 - Eb))).sum()
    return entropy_z + entropy_b


def elbo_prior(data, params_state, belief_state, hyperparams):
    log_pi = dirichlet_logpdf(params_state["pi_K"], hyperparams["alpha_K"])
    log_omega = beta_logpdf(params_state["omega_KD"], hyperparams["a0"], hyperparams["b0"]).sum()
    log_lambd = gamma_logpdf(params_state["lambd_KD"], hyperparams["e0"], hyperparams["f0"]).sum()
    return log_pi + log_omega + log_lambd


def elbo(data, params_state, belief_state, hyperparams):
    pieces = (elbo_likelihood, elbo_latents, elbo_entropy, elbo_prior)
    return sum(piece(data, params_state, belief_state, hyperparams) for piece in pieces)


def initialize_em(data, hyperparams, seed=617):
    torch.manual_seed(seed)
    N, D = data["X_ND"].shape
    K = len(hyperparams["alpha_K"])
    params_state = {
        "pi_K": Dirichlet(hyperparams["alpha_K"]).sample(),
        "omega_KD": Beta(hyperparams["a0"], hyperparams["b0"]).sample((K, D)),
        "lambd_KD": Gamma(hyperparams["e0"], hyperparams["f0"]).sample((K, D)),
    }
    belief_state = {"Ezeta_NK": torch.full((N, K), 1 / K), "Eb_NKD": torch.full((N, K, D), 0.75)}
    return params_state, belief_state


def em(data, hyperparams, max_iter=100, tol=1e-7, seed=617, verbose=True):
    params_state, belief_state = initialize_em(data, hyperparams, seed)
    elbo_vals = []
    for i in range(max_iter):
        belief_state = e_step(data, belief_state, params_state, hyperparams)
        params_state = m_step(data, belief_state, params_state, hyperparams)
        elbo_vals.append(elbo(data, params_state, belief_state, hyperparams))
        if verbose:
            print(f"iteration {i}: ELBO {elbo_vals[-1]}")
        if i > 0 and abs(elbo_vals[-1] - elbo_vals[-2]) < tol * abs(elbo_vals[-1]):
            break
    belief_state = e_step(data, belief_state, params_state, hyperparams)
    elbo_vals.append(elbo(data, params_state, belief_state, hyperparams))
    return params_state, belief_state, elbo_vals


def compute_affinity_matrix(params_state, belief_state):
    Ezeta = belief_state["Ezeta_NK"]
    return Ezeta @ Ezeta.T


def complete_matrix(data, params_state):
    Y = data["Y_MD_obs"]
    missing = params_state["omega_KD"].shape[1] - Y.shape[1]
    observed = {name: params_state[name][:, missing:] for name in ("omega_KD", "lambd_KD")}
    logits = log_joint({"X_ND": Y}, {"pi_K": params_state["pi_K"], **observed})
    weights = torch.softmax(logits, dim=1)
    mean = params_state["omega_KD"] * params_state["lambd_KD"]
    return weights @ mean[:, :missing]
