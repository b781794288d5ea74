"""The report of a pipeline: a page, a JSON file and a terminal table."""
