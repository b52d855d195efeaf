"""The four log densities and the complete conditionals (questions 1a-1e), held against sites of the Pyro program."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zipmix.checker import oracle
from zipmix.checker.item import CONDITIONAL, Answers, Item, Property, always, no_points, read_value, some, tensor
from zipmix.checker.problems import Problem

# Log densities: the sites of the program at drawn values.


def _density(
    name: str, arguments: tuple[str, ...], words: str, formula: str, axes: int, asked: Any, right: Any
) -> Item:
    return Item(
        name,
        "3",
        arguments,
        (),
        {"value": Property(words, formula, axes, floor=1.0)},
        lambda problem: problem.kind != "omega near 0 and 1" and problem.sizes[1] < 100,
        lambda problem: dict(zip(arguments, asked(problem), strict=True)),
        no_points,
        read_value(lambda problem: tuple(right(problem).shape)),
        always(lambda problem: {"value": right(problem)}),
    )


def _grid(value: object, problem: Problem) -> Tensor:
    return torch.as_tensor(value).expand(problem.theta.lam.shape).clone()


DENSITIES = (
    _density(
        "poisson_logpmf",
        ("x", "rate"),
        "it is the log probability that the Pyro program gives to x where b = 1",
        "log Poisson(x | lambda) = x log lambda - lambda - log x!   (6)",
        3,
        lambda p: (p.X_ND[:, None].expand(*p.Eb_NKD.shape).clone(), p.theta.lam.expand(*p.Eb_NKD.shape).clone()),
        lambda p: oracle.tables(p).x_NKD2[..., 1],
    ),
    _density(
        "dirichlet_logpdf",
        ("x", "alpha"),
        "it is the log density of the program's site pi",
        "log Dirichlet(pi | alpha), all constants in   (1)",
        0,
        lambda p: (p.theta.pi, p.prior.alpha),
        lambda p: oracle.tables(p).pi,
    ),
    _density(
        "gamma_logpdf",
        ("x", "concentration", "rate"),
        "it is the log density of the program's site lambda",
        "log Gamma(lambda | shape e_0, rate f_0), all constants in   (3)",
        2,
        lambda p: (p.theta.lam, _grid(p.prior.e, p), _grid(p.prior.f, p)),
        lambda p: oracle.tables(p).lam_KD,
    ),
    _density(
        "beta_logpdf",
        ("x", "alpha", "beta"),
        "it is the log density of the program's site omega",
        "log Beta(omega | a_0, b_0), all constants in   (2)",
        2,
        lambda p: (p.theta.omega, _grid(p.prior.a, p), _grid(p.prior.b, p)),
        lambda p: oracle.tables(p).omega_KD,
    ),
)


# Complete conditionals: log joint minus claimed log density is constant in the variable.


def _few_cells(problem: Problem) -> bool:
    return problem.sizes[1] * problem.sizes[2] <= 12


def _pi_points(problem: Problem) -> list[Tensor]:
    rng = np.random.default_rng(5)
    return [torch.from_numpy(rng.dirichlet(np.full(problem.sizes[2], 3.0))) for _ in range(5)]


def _entry_points(low: float, high: float) -> Callable[[Problem], list[Tensor]]:
    """A (K, D) table, and for each entry two tables that differ from it there alone."""

    def points(problem: Problem) -> list[Tensor]:
        _, D, K = problem.sizes
        base = torch.full((K, D), (low + high) / 2, dtype=torch.float64)
        tables = [base]
        for entry in range(K * D):
            for value in (low, high):
                table = base.clone()
                table.view(-1)[entry] = value
                tables.append(table)
        return tables

    return points


_omega_points = _entry_points(0.25, 0.875)
_lam_points = _entry_points(0.5, 6.0)


def _differences(values: list[Tensor]) -> Tensor:
    totals = torch.stack([torch.as_tensor(value, dtype=torch.float64).sum() for value in values])
    return totals[1:] - totals[0]


def _continuous(name: str, question: str, field: str, points: Any, family: str, formula: str) -> Item:
    def shape(problem: Problem) -> tuple[int, ...]:
        _, D, K = problem.sizes
        return (-1,) if field == "pi" else (K, D, 2)

    def read(problem: Problem, value: Any) -> Answers:
        return {"log density": _differences(value).reshape(shape(problem))}

    def right(problem: Problem) -> Answers:
        joints = [oracle.log_joint_at(problem, problem.theta._replace(**{field: point})) for point in points(problem)]
        return {"log density": _differences(joints).reshape(shape(problem))}

    words = (
        f"log p(X, Z, B, Theta) minus the claimed log density is the same at every {family}: "
        "differences between points agree"
    )
    return Item(
        name,
        question,
        CONDITIONAL,
        (),
        {"log density": Property(words, formula, 0 if field == "pi" else 2, floor=1.0)},
        (lambda problem: problem.sizes[2] > 1 and problem.sizes[1] < 100) if field == "pi" else _few_cells,
        some(CONDITIONAL),
        points,
        read,
        always(right),
    )


def _b_right(problem: Problem) -> Answers:
    b_NKD = oracle.b_given_z(oracle.tables(problem))
    return {"P(b = 1)": b_NKD[torch.arange(len(problem.z_N)), problem.z_N]}


def _z_right(problem: Problem) -> Answers:
    t = oracle.tables(problem)
    given_NKD = torch.where(problem.b_ND[:, None] > 0, (t.b_NKD2 + t.x_NKD2)[..., 1], (t.b_NKD2 + t.x_NKD2)[..., 0])
    return {"P(z = k)": torch.softmax(t.z_NK + given_NKD.sum(-1), 1)}


def _z_marginal_right(problem: Problem) -> Answers:
    return {"P(z = k)": oracle.responsibilities(oracle.tables(problem))}


def _b_points(problem: Problem) -> list[Tensor]:
    return [torch.ones_like(problem.X_ND)]


def _z_points(problem: Problem) -> list[Tensor]:
    return [torch.full((len(problem.X_ND),), k) for k in range(problem.sizes[2])]


def _read_b(problem: Problem, value: Any) -> Answers:
    return {"P(b = 1)": tensor(value[0], tuple(problem.X_ND.shape), "a Bernoulli").exp()}


def _read_z(problem: Problem, value: Any) -> Answers:
    columns = [tensor(column, (len(problem.X_ND),), "a Categorical") for column in value]
    return {"P(z = k)": torch.stack(columns, 1).exp()}


def _discrete(name: str, question: str, words: str, formula: str, points: Any, read: Any, right: Any) -> Item:
    output = "P(b = 1)" if points is _b_points else "P(z = k)"
    return Item(
        name,
        question,
        CONDITIONAL,
        (),
        {output: Property(words, formula, 2)},
        lambda problem: True,
        some(CONDITIONAL),
        points,
        read,
        always(right),
    )


CONDITIONALS = (
    _continuous("conditional_pi", "1a", "pi", _pi_points, "pi", "p(pi | rest) proportional to (1) (4)"),
    _continuous(
        "conditional_omega", "1b", "omega", _omega_points, "omega_kd", "p(omega_kd | rest) proportional to (2) (5)"
    ),
    _continuous(
        "conditional_lambda", "1c", "lam", _lam_points, "lambda_kd", "p(lambda_kd | rest) proportional to (3) (6)"
    ),
    _discrete(
        "conditional_b",
        "1d",
        "it is proportional to the joint in b_id, by enumeration of b_id in the Pyro program",
        "p(b_id | z_i = k, rest) proportional to (5) (6)",
        _b_points,
        _read_b,
        _b_right,
    ),
    _discrete(
        "conditional_z",
        "1e",
        "it is proportional to the joint in z_i with b given, by enumeration of z_i in the Pyro program",
        "p(z_i | B, rest) proportional to (4) (5) (6)",
        _z_points,
        _read_z,
        _z_right,
    ),
    _discrete(
        "conditional_z_marginal",
        "1e",
        "it is proportional to the joint in z_i, every b_id summed out by enumeration of the Pyro program",
        "p(z_i | X, Theta) proportional to (4) prod_d sum_b (5) (6)",
        _z_points,
        _read_z,
        _z_marginal_right,
    ),
)
