#!/usr/bin/env bash
# Everything that is to be known of one GPU, in one call of under ten minutes:
# ceilings, SFT, reward, PPO and decoding at 125M, 350M and 1.3B in bfloat16, and
# PPO on DeepSpeed-Chat's shape. Lines and a table end up in $OUT (runs/gpu).
#
#   benchmarks/gpu.sh            on a GPU
#   benchmarks/gpu.sh --tiny     the same programs at tiny size, on any machine
#
# PYTHON is an interpreter with this project's requirements, and on a GPU with
# jax's CUDA plugin of the same version.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
out=${OUT:-runs/gpu}
sizes=125m,350m,1.3b
chat=1.3b-chat
case ${1:-} in
  "") ;;
  --tiny) sizes=tiny chat=tiny-chat ;;
  *)
    echo "error: $1 is not known" >&2
    echo "  fix: benchmarks/gpu.sh [--tiny]" >&2
    exit 2
    ;;
esac

backend=$("$python" -c 'import jax; print(jax.default_backend())')
if [ "$chat" = 1.3b-chat ] && [ "$backend" = cpu ]; then
  echo "error: jax finds no accelerator" >&2
  echo "  fix: install jax's plugin for it, or give --tiny" >&2
  exit 2
fi

lines=$out/lines.jsonl
if [ -e "$lines" ]; then
  echo "error: $lines is there already" >&2
  echo "  fix: name another folder with OUT=DIR" >&2
  exit 2
fi
mkdir -p "$out"
: >"$lines"
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}
missing=0
ends=$((SECONDS + ${LIMIT_S:-560}))

# What is most wanted first; what no longer fits into the time is left out.
measure() {
  local left=$((ends - SECONDS))
  if [ "$left" -lt 5 ]; then
    echo "left out for want of time: $*" >&2
    missing=1
  elif ! timeout "$left" "$python" -m benchmarks.run --cold_only "$@" \
    >>"$lines"; then
    echo "did not end: $*" >&2
    missing=1
  fi
}

measure --work=ppo --model="$chat" --steps=3
for size in ${sizes//,/ }; do
  for work in sft generate reward ppo; do
    measure --work="$work" --model="$size" --steps=5
  done
done
"$python" -m benchmarks.table "$lines" | tee "$out/table.md"
exit "$missing"
