"""Documents that are tokenised and packed once, and read by index.

`prepare` writes a directory: `units` divides the corpus, `unit_work` turns a
unit into shards of rows (`row_records`), `manifest` describes the whole.
`rows` reads the rows of a directory by index, in constant memory.

Rows equal those of documents that a run packs in memory, but for one thing:
documents are split and packed unit by unit. A corpus of one unit, about 32 MB
of text, has exactly the same rows.
"""
