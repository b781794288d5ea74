"""Writes a run's report: a page, a JSON file and a terminal table."""
