"""Reading, curation, tokenization, packing and batching of data."""
