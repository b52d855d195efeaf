"""Mistakes in EM as a whole, recognised by what must hold of the answer if they were made."""

from zipmix import coursework
from zipmix.checker import oracle
from zipmix.checker.item import Answers, states
from zipmix.checker.items_steps import SHORT, em_point, params_dictionary
from zipmix.checker.mistake import mistake
from zipmix.checker.problems import Problem

# Right: beliefs are computed once more from the parameters that are returned


@mistake("em", "the beliefs that are returned are one M-step older than the parameters")
def beliefs_one_step_old(problem: Problem, got: Answers) -> Answers:
    if problem.kind != SHORT:
        return {}
    theta = oracle.maximiser(problem, got["Ezeta_NK"], got["Eb_NKD"])
    follow = all(
        bool(((ours - theirs).abs() <= 1e-4 * (1 + theirs.abs())).all())
        for ours, theirs in zip(em_point(got), theta, strict=True)
    )
    return {name: got[name] for name in ("Ezeta_NK", "Eb_NKD")} if follow else {}


# Right: a fall within rounding is allowed, 1e-6 of |ELBO| in float32


@mistake("em", "it insists that the ELBO never falls: in float32 rounding alone lowers it by up to 1e-6 of its size")
def falls_by_rounding_refused(problem: Problem, got: Answers) -> Answers:
    return {}  # it shows as an exception


# Right: the parameters of the last M-step are returned


@mistake("em", "the parameters that it started from are returned")
def first_parameters_returned(problem: Problem, got: Answers) -> Answers:
    own = states(problem)
    params, _ = coursework.initialize_em(own["data"], own["hyperparams"], 617)
    found = params_dictionary(em_point(got))
    same = all(bool((found[name] - value).abs().max() <= 1e-6 * value.abs().max()) for name, value in params.items())
    return got if same else {}


# Right: the ELBO is written down after every E-step, in the order of the iterations


@mistake("em", "the negative ELBO is returned")
def elbo_negated(problem: Problem, got: Answers) -> Answers:
    values = got["elbo_vals"]
    falls = len(values) > 2 and bool((values[2:] <= values[1:-1] + 1e-6 * values[1:-1].abs()).all())
    return {"elbo_vals": values} if falls and bool(values[-1] > 0) else {}
