"""Rows and samples on disk, in step."""
