"""The transformer, its heads, and generation."""
