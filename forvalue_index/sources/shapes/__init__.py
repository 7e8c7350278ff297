"""Shapes of rows: which columns and turns say what, whoever wrote them."""
