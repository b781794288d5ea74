"""Command line that imports and exports Hugging Face checkpoints."""
