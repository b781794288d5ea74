"""Imports, exports and inspects checkpoints of other libraries."""
