"""A sample becomes label tokens: their errors and hidden states."""
