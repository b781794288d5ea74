"""Measures models on held-out prompts, documents and tasks."""
