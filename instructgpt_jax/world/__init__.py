"""The embedded default: a closed synthetic world and its gold labeler."""
