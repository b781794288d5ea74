"""InstructGPT (arXiv:2203.02155) in JAX and Flax."""

__version__ = "0.1.0"
