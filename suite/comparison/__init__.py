"""Every method on the same data, and what can be said of how they agree."""

from zipmix.comparison.comparison import DEFAULT_METHODS as DEFAULT_METHODS
from zipmix.comparison.comparison import Comparison as Comparison
from zipmix.comparison.comparison import check_comparison as check_comparison
from zipmix.comparison.comparison import compare as compare
