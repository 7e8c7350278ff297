"""Label tokens become one sketched row. Nothing here reads or writes a file."""
