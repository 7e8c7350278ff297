"""The catalog: everything about samples but their rows, in SQL."""
