"""What each method of inference is: the one place where the names of methods decide anything."""

from typing import Literal, NamedTuple


class About(NamedTuple):
    """What a method gives, and what it takes."""

    kind: Literal["point", "variational", "draws"]  # "online" is variational where it has draws
    all_starts: bool = False  # runs all starts of a comparison in one batch; others run one, or one per chain
    has_trace: bool = True  # an objective that changes from one iteration to the next


ABOUT = {
    "em": About("point", all_starts=True),
    "pyro_map": About("point"),
    "pyro_svi": About("variational"),
    "pyro_nuts": About("draws"),
    "cavi": About("variational", all_starts=True),
    "online": About("variational"),
    "gibbs": About("draws"),
    "collapsed_gibbs": About("draws"),
    "exact": About("draws", has_trace=False),
}
