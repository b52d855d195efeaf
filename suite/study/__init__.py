"""Studies: one file that names data sets, numbers of components and seeds, and one page over all their comparisons.

file.py reads the study file, runs.py runs its cells in parallel, records.py and summary.py read what
they leave, and page.py and figures.py show it.
"""

from zipmix.study.page import rewrite_study as rewrite_study
from zipmix.study.runs import run_study as run_study
