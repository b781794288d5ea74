"""What all tests share."""

import os

# Little is computed in tests and much compiled: as little optimising as can be.
# Before JAX is imported; processes that tests start inherit it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# No test writes into the user's cache of compiled programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
