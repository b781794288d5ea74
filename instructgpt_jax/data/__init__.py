"""Tokenizers, sources, curation and input pipelines."""
