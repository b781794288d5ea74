"""Stages: batches, steps, evaluation, saving. Steps are jitted here only."""
