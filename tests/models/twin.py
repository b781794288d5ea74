"""Reference decoder in float64 numpy, one segment at a time.

There is no attention mask here: a segment is cut out of its row and run alone,
with positions counted from 0, as the shape legend of `types` describes it.
"""

import functools

import jax
import numpy as np

from instructgpt_jax import configs, sharding
from instructgpt_jax.models import heads
from instructgpt_jax.types import PromptBatch

# In tests this small, compilation takes most of the time.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


SMALL = dict(
  vocab_size=13, max_seq_len=24, num_layers=2, d_model=16, num_heads=2
)
# Of a width of 16 and 2 heads.
LLAMA = dict(
  num_kv_heads=1,
  d_ff=24,
  gated_mlp=True,
  activation="silu",
  norm="rms",
  pos_emb="rope",
  tie_embeddings=False,
  qkv_bias=False,
  out_bias=False,
  mlp_bias=False,
)


def make_config(**changes):
  """Returns the config of a decoder small enough for two cores."""
  return configs.Model(**{**SMALL, **changes})


def make_params(model, seed=0):
  """Draws parameters that all matter: no zero biases, no uniform softmax."""
  rng = np.random.default_rng(seed)

  def draw(path, x):
    centre = 1.0 if path[-1].key == "scale" else 0.0
    return (centre + 0.3 * rng.normal(size=x.shape)).astype(np.float32)

  shapes = sharding.unbox(heads.abstract_params(model))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def fill_up(params, model):
  """Pads parameters with zeros to the shapes of a model's."""

  def larger(x, like):
    room = [(0, b - a) for a, b in zip(x.shape, like.shape, strict=True)]
    return np.pad(x, room)

  shapes = sharding.unbox(heads.abstract_params(model))
  return jax.tree.map(larger, params, shapes)


def make_prompts(ids=range(6)):
  """Makes rows of 1 + i % 5 tokens that depend on i alone, with id 10 + i."""
  ids = np.asarray(ids)
  tokens = np.zeros((len(ids), 5), np.int32)
  mask = np.zeros((len(ids), 5), bool)
  for row, i in enumerate(ids):
    length = 1 + i % 5
    rng = np.random.default_rng(100 + i)
    tokens[row, 5 - length :] = rng.integers(2, 13, length)
    mask[row, 5 - length :] = True
  return PromptBatch(tokens=tokens, mask=mask, ids=(10 + ids).astype(np.int32))


def stack_layers(params):
  """Stacks parameters of the unrolled decoder for the scanned one."""
  decoder = dict(params["transformer"])
  names = sorted(name for name in decoder if name.startswith("blocks_"))
  blocks = [decoder.pop(name) for name in names]
  decoder["blocks"] = jax.tree.map(lambda *x: np.stack(x), *blocks)
  return {**params, "transformer": decoder}


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _norm(x, p):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def _gelu(x):
  return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _attention(x, p):
  """Computes attention one head and one token at a time."""
  kernel, bias = p["qkv"]["kernel"], p["qkv"]["bias"]
  heads, size = kernel.shape[2:]
  result = np.zeros_like(x) + p["project"]["bias"]
  for h in range(heads):
    query, key, value = (x @ kernel[:, i, h] + bias[i, h] for i in range(3))
    for t in range(len(x)):
      weights = softmax(key[: t + 1] @ query[t] / size**0.5)
      result[t] += weights @ value[: t + 1] @ p["project"]["kernel"][h]
  return result


def document(params, tokens):
  """Computes one document [n] → [n, D] after the final norm."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["transformer"])
  x = p["embedding"]["embedding"][tokens]
  x = x + p["position_embedding"]["embedding"][: len(tokens)]
  for i in range(sum(name.startswith("blocks_") for name in p)):
    block = p[f"blocks_{i}"]
    x = x + _attention(_norm(x, block["norm_attention"]), block)
    up = _norm(x, block["norm_mlp"]) @ block["up"]["kernel"]
    hidden = _gelu(up + block["up"]["bias"])
    x = x + hidden @ block["down"]["kernel"] + block["down"]["bias"]
  return _norm(x, p["final_norm"])


def decoder(params, tokens, segments):
  """Computes rows [B, T] → hidden states [B, T, D]; NaN on padding."""
  tokens, segments = np.asarray(tokens), np.asarray(segments)
  width = params["transformer"]["embedding"]["embedding"].shape[1]
  result = np.full((*tokens.shape, width), np.nan)
  for row, marks, hidden in zip(tokens, segments, result, strict=True):
    for segment in set(marks.tolist()) - {0}:
      hidden[marks == segment] = document(params, row[marks == segment])
  return result


def logits(params, tokens, segments):
  """Computes rows [B, T] → logits [B, T, V]; NaN on padding."""
  if "unembedding" in params:
    table = params["unembedding"]["kernel"]
  else:
    table = params["transformer"]["embedding"]["embedding"].T
  return decoder(params, tokens, segments) @ np.asarray(table, np.float64)


def scalars(params, tokens, segments):
  """Computes rows [B, T] → scalars [B, T]; NaN on padding."""
  head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["head"])
  outputs = decoder(params, tokens, segments) @ head["kernel"] + head["bias"]
  return outputs[..., 0]
