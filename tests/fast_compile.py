"""XLA's settings for tests, which compile much and compute little."""

XLA_FLAGS = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
