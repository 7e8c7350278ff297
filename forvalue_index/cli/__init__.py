"""The command line: each command parses, calls one use-case and prints one report.

Modules here import click alone at the top, so that `--help` imports neither torch nor FAISS.
"""

from forvalue_index.cli.app import main

__all__ = ["main"]
