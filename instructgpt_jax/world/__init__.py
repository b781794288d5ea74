"""The embedded world: synthetic data with a gold labeler."""
