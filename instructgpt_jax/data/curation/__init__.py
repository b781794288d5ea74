"""Curation as in the paper's appendix A: records to records.

Each step returns the records that stay and `Drops`, the counts of those that
go. `curate` applies all steps; `dedupe`, `users`, `splits`, `token_limits` and
`personal` are the steps, `drops` counts and judges.
"""

from instructgpt_jax.data.curation.curate import curate, prepare, require
from instructgpt_jax.data.curation.drops import Drops

__all__ = ["Drops", "curate", "prepare", "require"]
