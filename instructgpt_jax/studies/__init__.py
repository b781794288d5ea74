"""Reproduces the paper's findings in the embedded world."""
