"""MAP by autodiff, from the Pyro program alone: the cross-check of EM.

AutoDelta, z and b enumerated out (Pyro's TraceEnum_ELBO), is climbed by Adam, on mini-batches on request, and then
polished by L-BFGS (Byrd, Lu, Nocedal and Zhu, 1995, by scipy) on the program's log p(X, Theta | prior) in unconstrained
coordinates. The density is that of Theta itself, with no Jacobian, so that the optimum is the one that EM finds.
"""

import time
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.optim import ClippedAdam
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from zipmix.counts.checks import check_real, check_whole
from zipmix.inference.ending import Ending
from zipmix.inference.loop import Loop, iterate, out_of_time
from zipmix.inference.problem import Problem, pose
from zipmix.inference.restarts import restarts_alone
from zipmix.inference.result import Fit
from zipmix.inference.start import Init, starts
from zipmix.models.coordinates import GRADIENT_EDGE, constrain, interior, unconstrain
from zipmix.models.parameters import Parameters, Prior, require_mode, require_proper
from zipmix.models.zip_mixture import log_density, zip_mixture

# A gradient below this, relative to the objective, is zero to the accuracy of the sum over rows.
GRADIENT = 1e-7


class Ascent(NamedTuple):
    """One start: its end, and the objective on the way."""

    parameters: Parameters
    objective: float
    trace_T: Tensor
    seconds_T: Tensor
    converged: bool
    ending: Ending
    reason: str  # why it ended


class Value(NamedTuple):
    """The objective of the one run of the loop, (1,)."""

    objective: Tensor


def pyro_map(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    n_starts: int = 1,
    init: Init = "small-em",
    start: Parameters | None = None,
    n_adam: int = 100,
    learning_rate: float = 0.02,
    batch_size: int | None = None,
    max_iter: int = 1000,
    progress: bool = False,
) -> Fit:
    """MAP by gradient ascent on the enumerated Pyro program, the best of several starts, one after another.

    Args (those of every method: zipmix.fit):
        prior: hyperparameters; alpha, a, b, e >= 1 (below 1 no MAP exists), f > 0.
        n_starts: R >= 1.
        n_adam: steps of Adam before L-BFGS takes over; 0 leaves them out.
        learning_rate: of Adam, > 0.
        batch_size: rows of a step of Adam, drawn anew each time (`pyro.plate` with a subsample); None: all rows. L-BFGS
            always uses all.
        max_iter: most iterations of L-BFGS.
    Returns:
        The fit of the best start; `restarts` holds the outcome of all.
    Raises:
        InputError: data, prior or settings that cannot be used, or a prior without a MAP.
    """
    problem = pose(X, n_components, prior)
    require_mode(problem.prior, "pyro_map")
    require_proper(problem.prior, "pyro_map")
    check_whole(n_adam, "n_adam", at_least=0)
    check_whole(max_iter, "max_iter", at_least=1)
    check_real(learning_rate, "learning_rate")
    if batch_size is not None:
        check_whole(batch_size, "batch_size", at_least=1)
        batch_size = min(batch_size, len(problem.table.X_ND))
    counts, K = problem.counts, problem.n_components
    theta = starts(counts, problem.prior, n_components=K, n_starts=n_starts, init=init, start=start, seed=seed)
    ascents: list[Ascent] = []
    for point in zip(*theta, strict=True):
        rough, loop = _adam(problem, Parameters(*point), n_adam, learning_rate, batch_size, seed, progress)
        ascents.append(_lbfgs(problem, rough, loop, max_iter))
        if ascents[-1].ending.early:
            break
    best, last = max(ascents, key=lambda ascent: ascent.objective), ascents[-1]
    reason = best.reason
    if last.ending.early:
        reason = f"{last.reason}, in start {len(ascents)} of {len(theta.pi)}"
    length = max(len(ascent.trace_T) for ascent in ascents)
    return problem.fit(
        "pyro_map",
        parameters=best.parameters,
        objective=best.objective,
        trace=best.trace_T,
        trace_seconds=best.seconds_T,
        converged=best.converged,
        ending=last.ending if last.ending.early else best.ending,
        reason=reason,
        n_iter=len(best.trace_T) - 1,
        settings=dict(
            n_starts=len(theta.pi),
            init=init,
            start=start,
            n_adam=n_adam,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_iter=max_iter,
        ),
        seed=seed,
        restarts=restarts_alone(
            torch.tensor([ascent.objective for ascent in ascents], dtype=torch.float64),
            torch.tensor([len(ascent.trace_T) - 1 for ascent in ascents]),
            torch.tensor([ascent.converged for ascent in ascents]),
            torch.stack(
                [
                    torch.nn.functional.pad(ascent.trace_T, (0, length - len(ascent.trace_T)), value=torch.nan)
                    for ascent in ascents
                ],
                dim=1,
            ),
        ),
    )


def _adam(
    problem: Problem,
    start: Parameters,
    n_steps: int,
    learning_rate: float,
    batch_size: int | None,
    seed: int,
    progress: bool,
) -> tuple[Parameters, Loop]:
    """Climbs with AutoDelta; the global parameter store and random state are left as they were."""
    arguments = (problem.table.X_ND, *problem.table.X_ND.shape, problem.prior, batch_size)
    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        continuous = poutine.block(zip_mixture, expose=list(Parameters._fields))
        guide = AutoDelta(continuous, init_loc_fn=init_to_value(values=interior(start)._asdict()))
        svi = SVI(zip_mixture, guide, ClippedAdam({"lr": learning_rate}), TraceEnum_ELBO(max_plate_nesting=2))
        first = Value(torch.tensor([-svi.evaluate_loss(*arguments)], dtype=torch.float64))
        _, loop = iterate(
            lambda _: Value(torch.tensor([-svi.step(*arguments)], dtype=torch.float64)),
            first,
            lambda state: state.objective,
            max_iter=n_steps,
            tolerance=None,
            progress=progress,
            label="pyro_map: Adam",
        )
        values = {name: value.detach().clone() for name, value in guide.median(*arguments).items()}
    return Parameters(**values), loop


def _lbfgs(problem: Problem, start: Parameters, adam: Loop, max_iter: int) -> Ascent:
    """Polishes the point that Adam has come to on the program's own log density; only looks at it if interrupted."""
    X_ND = problem.table.X_ND
    objective, seconds = adam.trace_TR[:, 0].tolist(), adam.seconds_T.tolist()
    before = seconds[-1] - time.perf_counter()
    x = unconstrain(interior(start)).numpy()

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        x_free = torch.from_numpy(x).requires_grad_()
        value = -log_density(X_ND, constrain(x_free, start), problem.prior)
        (gradient,) = torch.autograd.grad(value, x_free)
        return value.item(), gradient.numpy()

    def record(intermediate_result: OptimizeResult) -> None:
        nonlocal x
        objective.append(-float(intermediate_result.fun))
        seconds.append(before + time.perf_counter())
        x = intermediate_result.x.copy()
        if out_of_time():
            raise TimeoutError

    stopped, reason = (adam.ending, adam.reason) if adam.ending.early else (None, "")
    try:
        if stopped is None:
            result = minimize(
                loss,
                x,
                jac=True,
                method="L-BFGS-B",
                bounds=[(-GRADIENT_EDGE, GRADIENT_EDGE)] * len(x),
                callback=record,
                options={"maxiter": max_iter, "maxfun": 2 * max_iter, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-7},
            )
            x = result.x
    except KeyboardInterrupt:
        stopped, reason = Ending.INTERRUPTED, f"{Ending.INTERRUPTED.stopped_by} while L-BFGS ran"
    except TimeoutError:
        stopped, reason = Ending.BUDGET, f"{Ending.BUDGET.stopped_by} while L-BFGS ran"
    value, gradient = loss(x)
    steepest = float(np.abs(gradient).max())
    converged = stopped is None and steepest <= GRADIENT * (1 + abs(value))
    return Ascent(
        parameters=constrain(torch.from_numpy(x), start),
        objective=-value,
        trace_T=torch.tensor(objective, dtype=torch.float64),
        seconds_T=torch.tensor(seconds, dtype=torch.float64),
        converged=converged,
        ending=stopped or (Ending.CONVERGED if converged else Ending.MAX_ITER),
        reason=f"{reason or f'L-BFGS: {result.message}'}; largest gradient {steepest:.1e}",
    )
