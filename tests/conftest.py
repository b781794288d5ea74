"""What all tests share."""

import atexit
import os
import shutil
import tempfile

# Little is computed in tests and much compiled: as little optimising as can be.
# Before JAX is imported; processes that tests start inherit it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# What one test has compiled, others and their processes load. The folder is not
# the user's, and all workers of a test run have the same one.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _compiled = tempfile.mkdtemp(prefix="compiled-")
  atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
