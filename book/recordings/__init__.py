"""Longer runs whose results chapters show: each script writes the files beside it."""
