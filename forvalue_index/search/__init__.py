"""The rows of largest inner product, one file a kind of search."""
