"""Config of a transformer."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from instructgpt_jax.configs.fields import Checked, option
from instructgpt_jax.errors import UserError

# Fields that only imported models change.
_imported = functools.partial(option, advanced=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Checked):
  """Transformer decoder; the defaults are the GPT family's, as in GPT-2.

  The fields from `vocab_padding` on describe other families: docs/models.md.
  """

  vocab_size: int = option(
    0, "Vocabulary size; 0 uses the tokenizer's.", unit="tokens", minimum=0
  )
  max_seq_len: int = option(
    2048, "Maximum sequence length.", unit="tokens", paper="C [P]", minimum=2
  )
  num_layers: int = option(
    24, "Number of decoder blocks.", paper="GPT-3 table 2.1", minimum=1
  )
  d_model: int = option(
    2048, "Width of the residual stream.", paper="GPT-3 table 2.1", minimum=1
  )
  num_heads: int = option(
    16, "Number of attention heads.", paper="GPT-3 table 2.1", minimum=1
  )
  mlp_ratio: int = option(
    4, "Width of the MLP divided by d_model.", paper="GPT-3 2.1", minimum=1
  )
  dropout: float = option(
    0.0,
    "Residual dropout rate; each training stage sets its own.",
    paper="C.1 [P]",
    minimum=0.0,
    maximum=0.99,
  )
  tie_embeddings: bool = option(
    True, "Use the transposed embedding as the unembedding."
  )
  init_std: float = option(
    0.02,
    "Standard deviation of newly initialised kernels and embeddings.",
    paper="GPT-2",
    above=0.0,
  )
  position_init: Literal["normal", "sinusoid"] = option(
    "normal",
    "Initialisation of learned positions; sinusoid makes copying easier to"
    " learn.",
  )
  dtype: Literal["float32", "bfloat16"] = option(
    "float32",
    "Dtype of activations and matmuls; master weights stay float32.",
    paper="C [P]",
  )
  remat: Literal["none", "dots", "full"] = option(
    "none",
    "What the backward pass recomputes: nothing, all but matmuls, or whole"
    " blocks.",
  )
  scan_layers: bool = option(
    False, "Scan over layers, so that compile time does not grow with depth."
  )
  lora_rank: int | None = option(
    None,
    "Rank of LoRA adapters, which alone are trained; none trains all weights.",
    minimum=1,
  )
  lora_alpha: float = option(
    16.0, "Scale of LoRA adapters, times 1 / rank.", above=0.0
  )
  lora_layers: Literal["all", "attention", "mlp"] = option(
    "all", "Dense layers that have LoRA adapters."
  )

  vocab_padding: int = _imported(
    0, "Number of embedding rows after the vocabulary.", minimum=0
  )
  head_padding: int = _imported(
    0,
    "Number of key/value heads with zero weights, added until the tensor axis"
    " divides them.",
    minimum=0,
  )
  num_kv_heads: int | None = _imported(
    None, "Number of key/value heads; none uses num_heads.", minimum=1
  )
  head_dim: int | None = _imported(
    None, "Width of a head; none uses d_model / num_heads.", minimum=1
  )
  d_ff: int | None = _imported(
    None, "Width of the MLP; none uses mlp_ratio · d_model.", minimum=1
  )
  activation: Literal["gelu_tanh", "gelu", "relu", "silu"] = _imported(
    "gelu_tanh", "MLP activation function."
  )
  gated_mlp: bool = _imported(
    False, "Multiply the MLP's activation by a second projection (GLU)."
  )
  norm: Literal["layer", "rms", "gemma_rms"] = _imported(
    "layer",
    "Normalisation layer; gemma_rms stores its scale minus one.",
  )
  norm_eps: float = _imported(
    1e-5, "Constant added to a norm's variance.", above=0.0
  )
  block: Literal["sequential", "parallel", "parallel_one_norm", "sandwich"] = (
    _imported(
      "sequential",
      "Order within a block: attention, then MLP; both in parallel, with two"
      " norms or one; or in sequence, with norms before and after each.",
    )
  )
  qkv_bias: bool = _imported(
    True, "Use biases in the query, key and value projections."
  )
  out_bias: bool = _imported(
    True, "Use a bias in attention's output projection."
  )
  mlp_bias: bool = _imported(True, "Use biases in the MLP.")
  qk_norm: bool = _imported(False, "Normalise each head's queries and keys.")
  query_pre_attn_scalar: float | None = _imported(
    None,
    "Attention scores are divided by its square root; none uses head_dim.",
    above=0.0,
  )
  attn_logit_softcap: float | None = _imported(
    None, "Soft cap of attention scores.", above=0.0
  )
  final_logit_softcap: float | None = _imported(
    None, "Soft cap of the logits.", above=0.0
  )
  scale_embeddings: bool = _imported(
    False, "Multiply embeddings by the square root of d_model."
  )
  unembedding_bias: bool = _imported(
    False, "Use a bias in the unembedding; needs untied embeddings."
  )
  pos_emb: Literal["learned", "rope"] = _imported(
    "learned", "Position embedding: learned, or rotary (RoPE)."
  )
  position_offset: int = _imported(
    0, "Number of unused rows before the learned positions.", minimum=0
  )
  rope_dim: int | None = _imported(
    None, "Dimensions of a head that RoPE rotates; none rotates all.", minimum=1
  )
  rope_interleaved: bool = _imported(
    False, "Rotate neighbouring dimensions, instead of a head's two halves."
  )
  rope_theta: float = _imported(
    10_000.0, "Base of RoPE's wavelengths.", above=0.0
  )
  rope_scaling: Literal["none", "linear", "llama3"] = _imported(
    "none", "Scaling of RoPE's wavelengths."
  )
  rope_factor: float = _imported(
    1.0, "Factor by which RoPE's wavelengths are scaled.", minimum=1.0
  )
  rope_low_freq_factor: float = _imported(
    1.0,
    "Llama 3 scaling: wavelengths with fewer rotations than this in the"
    " original context are scaled fully.",
    above=0.0,
  )
  rope_high_freq_factor: float = _imported(
    4.0,
    "Llama 3 scaling: wavelengths with more rotations than this in the"
    " original context are not scaled.",
    above=0.0,
  )
  rope_original_max_seq_len: int = _imported(
    8192, "Llama 3 scaling: the original context.", unit="tokens", minimum=1
  )
  rope_local_theta: float | None = _imported(
    None,
    "RoPE base of layers with a sliding window, without scaling; none treats"
    " them as the others.",
    above=0.0,
  )
  sliding_window: int | None = _imported(
    None,
    "Number of newest tokens that a sliding-window layer attends to, its own"
    " included.",
    unit="tokens",
    minimum=1,
  )
  sliding_window_pattern: str = _imported(
    "w",
    "Layers with a sliding window (w) and with full attention (f), repeated up"
    " to the last.",
  )

  def __post_init__(self):
    super().__post_init__()
    if not self.head_dim and self.d_model % self.num_heads:
      raise UserError(
        f"d_model {self.d_model} is not a multiple of num_heads"
        f" {self.num_heads}",
        field="model.num_heads",
        fix="give a number of heads that divides model.d_model",
        code="not_a_divisor",
      )
    if self.num_heads % self.kv_heads:
      raise UserError(
        f"{self.kv_heads} is not a divisor of num_heads {self.num_heads}",
        field="model.num_kv_heads",
        fix="give a number that divides model.num_heads",
        code="not_a_divisor",
      )
    rotated = self.rope_dim or self.head_size
    if self.pos_emb == "rope" and (rotated % 2 or rotated > self.head_size):
      raise UserError(
        f"RoPE cannot rotate {rotated} of a head's {self.head_size} dimensions",
        field="model.rope_dim",
        fix="give an even number, at most a head's width",
        code="bad_rope_dim",
      )
    if self.sliding_window and set(self.sliding_window_pattern) not in map(
      set, ("w", "f", "wf")
    ):
      raise UserError(
        f"{self.sliding_window_pattern!r} is not a pattern of layers",
        field="model.sliding_window_pattern",
        fix="give letters w (window) and f (full), such as wf",
        code="bad_pattern",
      )
    if self.unembedding_bias and self.tie_embeddings:
      raise UserError(
        "tied embeddings have no bias",
        field="model.unembedding_bias",
        fix="give --model.tie_embeddings=false as well",
        code="tied_bias",
      )

  @property
  def kv_heads(self) -> int:
    """Returns the number of key/value heads, K."""
    return self.num_kv_heads or self.num_heads

  @property
  def padded_kv_heads(self) -> int:
    """Returns the number of key/value heads, padding included."""
    return self.kv_heads + self.head_padding

  @property
  def padded_heads(self) -> int:
    """Returns the number of query heads, padding included."""
    return self.num_heads // self.kv_heads * self.padded_kv_heads

  @property
  def head_size(self) -> int:
    """Returns the width of a head."""
    return self.head_dim or self.d_model // self.num_heads

  @property
  def mlp_dim(self) -> int:
    """Returns the width of the MLP."""
    return self.d_ff or self.mlp_ratio * self.d_model

  @property
  def padded_vocab_size(self) -> int:
    """Returns the number of embedding rows, padding included."""
    return self.vocab_size + self.vocab_padding

  def adapter_rank(self, part: str) -> int:
    """Returns the rank of the adapters of "attention" or "mlp", or 0."""
    return self.lora_rank or 0 if self.lora_layers in ("all", part) else 0

  def has_sliding_window(self, layer: int) -> bool:
    """Returns whether a layer attends to the newest tokens only."""
    pattern = self.sliding_window_pattern
    return bool(self.sliding_window) and pattern[layer % len(pattern)] == "w"


# Fields that no array of a checkpoint depends on: a run chooses them freely.
FREE_FIELDS = ("dropout", "init_std", "position_init", "dtype", "remat")
# What a checkpoint's arrays, or their meaning, depend on. Adapters may differ.
ARCHITECTURE = tuple(
  field.name
  for field in dataclasses.fields(Model)
  if field.name not in FREE_FIELDS and not field.name.startswith("lora_")
)
