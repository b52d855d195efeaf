"""The ZIP mixture as a NumPyro program: z and b stated explicitly and summed out by enumeration, as in the Pyro one."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.funsor import config_enumerate, enum
from numpyro.contrib.funsor import log_density as enumerated_density

from zipmix import Parameters, Prior

# Before the first array is made: torch's contestants are in float64 as well.
jax.config.update("jax_enable_x64", True)

Point = dict[str, Any]


def zip_mixture(X_ND: Any, prior: Prior) -> None:
    """Equations (1) to (6); the fields of the prior are numbers, alpha has shape (K,)."""
    N, D = X_ND.shape
    feature = numpyro.plate("feature", D, dim=-1)
    pi_K = numpyro.sample("pi", dist.Dirichlet(prior.alpha))
    with numpyro.plate("component", len(prior.alpha), dim=-2), feature:
        omega_KD = numpyro.sample("omega", dist.Beta(prior.a, prior.b))
        lam_KD = numpyro.sample("lam", dist.Gamma(prior.e, prior.f))
    with numpyro.plate("observation", N, dim=-2):
        z_N = numpyro.sample("z", dist.Categorical(pi_K))
        with feature:
            d = jnp.arange(D)
            b_ND = numpyro.sample("b", dist.Bernoulli(omega_KD[z_N, d]))
            poisson = dist.Poisson(lam_KD[z_N, d]).log_prob(X_ND)
            numpyro.factor("x", jnp.where(b_ND == 1, poisson, jnp.where(X_ND == 0, 0.0, -jnp.inf)))


enumerated = enum(config_enumerate(zip_mixture), first_available_dim=-3)


def log_density(point: Point, X_ND: Any, prior: Prior) -> Any:
    """log p(X, Theta | prior), z and b summed out."""
    with numpyro.validation_enabled(False):
        return enumerated_density(enumerated, (X_ND, prior), {}, point)[0]


def gradient(X: np.ndarray, theta: Parameters, prior: Prior) -> Callable[[], tuple[float, Point]]:
    """Value and gradient at theta, already compiled; the counts are an argument and not a constant of the program."""
    X_ND, point, prior = jnp.asarray(X, dtype=float), as_point(theta), as_numbers(prior, len(theta.pi))
    compiled = jax.jit(jax.value_and_grad(lambda point, X_ND: log_density(point, X_ND, prior)))

    def run() -> tuple[float, Point]:
        value, slope = compiled(point, X_ND)
        return float(value), jax.block_until_ready(slope)

    run()
    return run


def as_point(theta: Parameters) -> Point:
    """A point as JAX has it."""
    return {name: jnp.asarray(value.numpy()) for name, value in theta._asdict().items()}


def as_numbers(prior: Prior, n_components: int) -> Prior:
    """The prior as NumPy has it, alpha of shape (K,)."""
    alpha, *others = (np.asarray(value, dtype=float) for value in prior)
    return Prior(np.broadcast_to(alpha, n_components), *map(float, others))


def lbfgs(X: np.ndarray, theta: Parameters, prior: Prior, n_steps: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """MAP by SciPy's L-BFGS on the density of Theta, over logs and logits; the same settings as pyro_map's."""
    from scipy.optimize import minimize

    prior, (K, D) = as_numbers(prior, len(theta.pi)), theta.omega.shape
    X_ND = jnp.asarray(X, dtype=float)
    pi, omega, lam = (np.asarray(value.numpy()) for value in theta)
    first = np.concatenate([np.log(pi), np.log(omega / (1 - omega)).ravel(), np.log(lam).ravel()])

    def loss(x: Any, X_ND: Any) -> Any:
        log_pi, logit, log_lam = x[:K], x[K : K + K * D].reshape(K, D), x[K + K * D :].reshape(K, D)
        point = {"pi": jax.nn.softmax(log_pi), "omega": jax.nn.sigmoid(logit), "lam": jnp.exp(log_lam)}
        return -log_density(point, X_ND, prior)

    compiled = jax.jit(jax.value_and_grad(loss))

    def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = compiled(x, X_ND)
        return float(value), np.asarray(slope)

    def run() -> tuple[np.ndarray, np.ndarray]:
        began, objective, seconds = time.perf_counter(), [], []

        def record(intermediate_result: Any) -> None:
            objective.append(-float(intermediate_result.fun))
            seconds.append(time.perf_counter() - began)

        minimize(
            value_and_slope, first, jac=True, method="L-BFGS-B", bounds=[(-EDGE, EDGE)] * len(first), callback=record,
            options={"maxiter": n_steps, "maxfun": 2 * n_steps, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-7},
        )  # fmt: skip
        return np.array(objective), np.array(seconds)

    value_and_slope(first)
    return run


# Bounds on logs and logits, where exp and sigmoid round to 0 and 1.
EDGE = 35.0


def adam(X: np.ndarray, theta: Parameters, prior: Prior, n_steps: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """MAP by NumPyro's own means: SVI with AutoDelta and Adam at a rate of 0.02."""
    from numpyro.contrib.funsor import config_enumerate
    from numpyro.handlers import block
    from numpyro.infer import SVI, TraceEnum_ELBO
    from numpyro.infer.autoguide import AutoDelta
    from numpyro.infer.initialization import init_to_value

    prior, X_ND = as_numbers(prior, len(theta.pi)), jnp.asarray(X, dtype=float)
    model = config_enumerate(zip_mixture)
    guide = AutoDelta(
        block(model, expose_types=["sample"], hide=["z", "b", "x"]), init_loc_fn=init_to_value(values=as_point(theta))
    )
    svi = SVI(model, guide, numpyro.optim.Adam(0.02), TraceEnum_ELBO(max_plate_nesting=2))
    first = svi.init(jax.random.PRNGKey(0), X_ND, prior)
    step = jax.jit(lambda state, X_ND: svi.update(state, X_ND, prior))

    def run() -> tuple[np.ndarray, np.ndarray]:
        began, state, objective, seconds = time.perf_counter(), first, [], []
        for _ in range(n_steps):
            state, loss = step(state, X_ND)
            objective.append(-float(loss))
            seconds.append(time.perf_counter() - began)
        return np.array(objective), np.array(seconds)

    step(first, X_ND)
    return run
