"""Runs all stages in order and writes a report; skips complete stages."""
