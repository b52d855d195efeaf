"""`zipmix.labels`: the labels of components, from zipmix.inference.labels."""

from zipmix.inference.labels import distances as distances
from zipmix.inference.labels import match as match
from zipmix.inference.labels import matching as matching
from zipmix.inference.labels import mixing as mixing
from zipmix.inference.labels import relabel as relabel
from zipmix.inference.labels import reorder as reorder
