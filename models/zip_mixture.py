"""The zero-inflated Poisson (ZIP) mixture, declared once, as a Pyro program.

    pi              ~ Dirichlet(alpha)                        (1)   weights of the components
    omega_kd        ~ Beta(a, b)                              (2)   P(b = 1): share of the *Poisson* part
    lambda_kd       ~ Gamma(shape e, rate f)                  (3)   Poisson rate
    z_i             ~ Categorical(pi)                         (4)   component of row i
    b_id | z_i = k  ~ Bernoulli(omega_kd)                     (5)   1: the cell counts, 0: a structural zero
    x_id            = 0 if b_id = 0, ~ Poisson(lambda_kd) if b_id = 1      (6)

i = 1..N rows, d = 1..D columns, k = 1..K components. omega here is 1 - gate of Pyro and NumPyro, 1 - zi of brms, and
psi of PyMC. Letters in tensor names: N rows, D columns, K components, R restarts, C chains, S draws, T temperatures or
iterations. Theta = (pi, omega, lambda). This is the notation of all files.

All that is derived by hand is checked against this program: it states z and b explicitly and Pyro sums them out by
enumeration, so it shares no formula with kernel.py and conjugate.py.
"""

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import ProvenanceTensor, get_provenance
from torch import Tensor

from zipmix.counts.checks import check_whole
from zipmix.models.parameters import Parameters, Prior, check_components, check_parameters, check_prior, require_proper


def zip_mixture(
    X_ND: Tensor | None, n_rows: int, n_features: int, prior: Prior, batch_size: int | None = None
) -> Tensor:
    """The model, equations (1) to (6).

    Args:
        X_ND: (N, D) counts, NaN where missing; None draws them.
        n_rows: N, the number of rows.
        n_features: D.
        prior: hyperparameters, alpha of shape (K,).
        batch_size: B, rows of X_ND to use, drawn anew in each run and weighted by N / B; None uses all.
    Returns:
        The counts, given or drawn.
    """
    alpha, a, b, e, f = map(torch.as_tensor, prior)
    component = pyro.plate("component", len(alpha), dim=-2)
    observation = pyro.plate("observation", n_rows, subsample_size=batch_size, dim=-2)
    feature = pyro.plate("feature", n_features, dim=-1)

    pi_K = pyro.sample("pi", dist.Dirichlet(alpha))  # (1)
    with component, feature:
        omega_KD = pyro.sample("omega", dist.Beta(a, b))  # (2)
        lam_KD = pyro.sample("lam", dist.Gamma(e, f))  # (3)
    with observation as rows:
        X_ND = X_ND if X_ND is None or batch_size is None else X_ND[rows]
        z_N = pyro.sample("z", dist.Categorical(pi_K), infer={"enumerate": "parallel"})  # (4)
        with feature:
            d = torch.arange(n_features)
            b_ND = pyro.sample("b", dist.Bernoulli(omega_KD[z_N, d]), infer={"enumerate": "parallel"})  # (5)
            cell = dist.MaskedMixture(b_ND.bool(), dist.Delta(torch.zeros(())), dist.Poisson(lam_KD[z_N, d]))
            observed_ND = torch.tensor(True) if X_ND is None else ~X_ND.isnan()
            with poutine.mask(mask=observed_ND):  # type: ignore[call-overload]
                return pyro.sample("x", cell, obs=None if X_ND is None else X_ND.nan_to_num(0.0))  # (6)


def log_density(X_ND: Tensor, parameters: Parameters, prior: Prior) -> Tensor:
    """log p(X, Theta | prior) of the Pyro program, z and b summed out by enumeration; differentiable in Theta.

    torch's Bernoulli keeps omega 2^-52 off 0 and 1, so that gradients stay finite: on the boundary a cell of
    lower probability has that probability.

    Args:
        X_ND: (N, D) float64 counts, NaN where missing.
        parameters: one point, pi (K,), omega (K, D), lam (K, D).
        prior: hyperparameters as check_prior returns them.
    Returns:
        A scalar tensor.
    """
    # TraceEnum_ELBO needs a tensor that requires a gradient.
    point = {
        name: value if value.requires_grad else value.detach().requires_grad_()
        for name, value in parameters._asdict().items()
    }
    conditioned = poutine.condition(zip_mixture, data=point)
    enumerated = TraceEnum_ELBO(max_plate_nesting=2)
    with poutine.block(), pyro.validation_enabled(False):
        # With no latent variable left to the guide, the ELBO is the log density itself.
        return -enumerated.differentiable_loss(conditioned, _empty_guide, X_ND, *X_ND.shape, prior)


def _empty_guide(*_: object) -> None:
    return None


class Simulation(NamedTuple):
    """A draw from the model: what is observed, what is latent, and the parameters behind them."""

    X: Tensor  # (N, D) float64 counts
    z: Tensor  # (N,)   int64 component of each row
    b: Tensor  # (N, D) bool, False: a structural zero
    parameters: Parameters


def simulate(
    n: int,
    n_features: int,
    n_components: int,
    *,
    prior: Prior = Prior(),
    parameters: Parameters | None = None,
    seed: int = 0,
) -> Simulation:
    """Draws parameters and counts by running the Pyro program forward.

    Args:
        n: N, number of rows.
        n_features: D, number of columns.
        n_components: K.
        prior: hyperparameters of (1)-(3).
        parameters: pi (K,), omega (K, D), lam (K, D) to hold fixed; drawn from the prior where None.
        seed: of the draw; the global random state is not changed.
    Raises:
        InputError: a size below 1, a seed below 0, parameters of a wrong shape, or an improper prior.
    """
    n = check_whole(n, "n", at_least=1)
    n_features = check_whole(n_features, "n_features", at_least=1)
    n_components = check_components(n_components)
    prior = check_prior(prior, n_components)
    require_proper(prior, "simulate")
    seed = check_whole(seed, "seed", at_least=0)
    program = zip_mixture
    if parameters is not None:
        given = check_parameters(parameters, n_components, n_features)
        program = poutine.condition(zip_mixture, data=given._asdict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sites: dict[str, Any] = poutine.trace(program).get_trace(None, n, n_features, prior).nodes
    value = {name: sites[name]["value"].detach() for name in ("pi", "omega", "lam", "z", "b", "x")}
    theta = Parameters(value["pi"], value["omega"], value["lam"])
    return Simulation(value["x"].to(torch.float64), value["z"].squeeze(-1), value["b"].bool(), theta)


# Names of the prior's fields with a subscript, since its b and the model's b share a letter.
HYPERPARAMETERS = tuple(f"{name}_0" for name in Prior._fields)


class Relations(NamedTuple):
    """The graphical model of the program: parents and plates of every site, and which sites are observed."""

    parents: dict[str, frozenset[str]]  # site -> sites and hyperparameters its distribution is made from
    plates: dict[str, tuple[str, ...]]  # site -> plates around it, outermost first
    families: dict[str, str]  # site -> name of its distribution
    observed: frozenset[str]
    hyperparameters: tuple[str, ...]


def relations() -> Relations:
    """Traces the Pyro program on a tiny problem and reports its graphical model (question 0)."""
    tracked = Prior(
        *(
            ProvenanceTensor(torch.ones(2) if name == "alpha_0" else torch.tensor(1.0), frozenset({name}))
            for name in HYPERPARAMETERS
        )
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False), TrackProvenance():
        nodes: dict[str, Any] = poutine.trace(zip_mixture).get_trace(torch.zeros(2, 2), 2, 2, tracked).nodes
    sites = {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample" and not poutine.util.site_is_subsample(node)
    }
    return Relations(
        parents={name: get_provenance(site["fn"].log_prob(site["value"])) - {name} for name, site in sites.items()},
        plates={name: tuple(frame.name for frame in site["cond_indep_stack"]) for name, site in sites.items()},
        families={name: _family(site["fn"]) for name, site in sites.items()},
        observed=frozenset(name for name, site in sites.items() if site["is_observed"]),
        hyperparameters=HYPERPARAMETERS,
    )


def _family(distribution: object) -> str:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return type(distribution).__name__
