"""What each method of inference is: the one place where the names of methods decide anything."""

from typing import Literal, NamedTuple


class About(NamedTuple):
    """What a method gives, and what it takes."""

    kind: Literal["point", "variational", "draws"]  # "online" is variational where it has draws
    many_starts: bool  # several starts in one fit, of which the best is reported
    takes_streams: bool = False  # tables larger than memory
    has_trace: bool = True  # an objective that changes from one iteration to the next


ABOUT = {
    "em": About("point", many_starts=True, takes_streams=True),
    "pyro_map": About("point", many_starts=True),
    "pyro_svi": About("variational", many_starts=False),
    "pyro_nuts": About("draws", many_starts=False),
    "cavi": About("variational", many_starts=True),
    "online": About("variational", many_starts=True, takes_streams=True),
    "gibbs": About("draws", many_starts=False),
    "collapsed_gibbs": About("draws", many_starts=False),
    "exact": About("draws", many_starts=False, has_trace=False),
}
