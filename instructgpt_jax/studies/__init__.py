"""Findings of the paper, run again in the embedded world and judged."""
