"""Files, locks, metrics and progress of a run."""
