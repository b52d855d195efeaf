"""The table of counts: checked, stored small, multiplied from either side; it knows no parameter of a model."""
