"""Checkpoints to resume from, and trained models, with checksums."""
