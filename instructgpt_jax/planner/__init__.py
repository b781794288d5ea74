"""Will it fit, and how fast: programs, compiled for hardware not at hand."""
