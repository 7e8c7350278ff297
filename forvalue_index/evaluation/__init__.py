"""Evidence for what the values mean: evaluations of an index, one a module."""
