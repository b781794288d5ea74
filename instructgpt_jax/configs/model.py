"""Config of a transformer."""

from __future__ import annotations

import dataclasses

from instructgpt_jax.configs.fields import Checked, option
from instructgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Checked):
  """A decoder; the defaults are the GPT family's, as in GPT-2.

  The fields after `scan_layers` make other families of it: docs/models.md.
  """

  vocab_size: int = option(
    0, "vocabulary size; 0 takes the tokenizer's", unit="tokens", minimum=0
  )
  max_seq_len: int = option(
    2048, "positions of a row", unit="tokens", paper="C [P]", minimum=2
  )
  num_layers: int = option(
    24, "decoder blocks", paper="GPT-3 table 2.1", minimum=1
  )
  d_model: int = option(
    2048, "residual width d_model", paper="GPT-3 table 2.1", minimum=1
  )
  num_heads: int = option(
    16, "attention heads", paper="GPT-3 table 2.1", minimum=1
  )
  mlp_ratio: int = option(4, "d_ff / d_model", paper="GPT-3 2.1", minimum=1)
  dropout: float = option(
    0.0,
    "residual dropout; stages set it",
    paper="C.1 [P]",
    minimum=0.0,
    maximum=0.99,
  )
  tie_embeddings: bool = option(True, "unembedding is the embedding transposed")
  init_std: float = option(
    0.02,
    "standard deviation of fresh kernels and embeddings",
    paper="GPT-2",
    above=0.0,
  )
  position_init: str = option(
    "normal",
    "fresh learned positions: noise, or a sinusoid that helps copying",
    choices=("normal", "sinusoid"),
  )
  dtype: str = option(
    "float32",
    "activations and matrix products; master weights stay float32",
    paper="C [P]",
    choices=("float32", "bfloat16"),
  )
  remat: str = option(
    "none",
    "what the backward pass recomputes",
    choices=("none", "dots", "full"),
  )
  scan_layers: bool = option(
    False, "scan over layers: compile time flat in depth"
  )
  vocab_padding: int = option(
    0, "rows after the vocabulary, of ids that are never predicted", minimum=0
  )
  head_padding: int = option(
    0,
    "heads of keys and values after the model's, which are all zero; those"
    " of a model of another library, for the mesh",
    minimum=0,
  )
  num_kv_heads: int = option(
    0, "heads of keys and values, a divisor of heads; 0 is heads", minimum=0
  )
  head_dim: int = option(0, "width of a head; 0 is width / heads", minimum=0)
  d_ff: int = option(0, "d_ff; 0 is mlp_ratio · width", minimum=0)
  activation: str = option(
    "gelu_tanh",
    "of the MLP",
    choices=("gelu_tanh", "gelu", "relu", "silu"),
  )
  gated_mlp: bool = option(
    False, "the MLP's activation multiplies a second half"
  )
  norm: str = option(
    "layer",
    "LayerNorm, RMSNorm, or RMSNorm whose scale is stored less one",
    choices=("layer", "rms", "gemma_rms"),
  )
  norm_eps: float = option(1e-5, "added to a norm's variance", above=0.0)
  block: str = option(
    "sequential",
    "attention, then MLP; both at once, with two norms or one; or in turn,"
    " with norms after them as well",
    choices=("sequential", "parallel", "parallel_one_norm", "sandwich"),
  )
  qkv_bias: bool = option(True, "biases of queries, keys and values")
  out_bias: bool = option(True, "bias of what attention adds")
  mlp_bias: bool = option(True, "biases of the MLP")
  qk_norm: bool = option(False, "norms of each head's query and key")
  query_pre_attn_scalar: float = option(
    0.0, "scores are divided by its root; 0 is head_dim", minimum=0.0
  )
  attn_logit_softcap: float = option(
    0.0, "soft cap of attention's scores; 0 is none", minimum=0.0
  )
  final_logit_softcap: float = option(
    0.0, "soft cap of logits; 0 is none", minimum=0.0
  )
  scale_embeddings: bool = option(
    False, "embeddings are multiplied by the root of width"
  )
  unembedding_bias: bool = option(
    False, "bias of the logits; with untied embeddings"
  )
  pos_emb: str = option(
    "learned", "how a token knows its place", choices=("learned", "rope")
  )
  position_offset: int = option(
    0, "unused rows ahead of the learned positions", minimum=0
  )
  rope_dim: int = option(0, "numbers of a head that turn; 0 is all", minimum=0)
  rope_interleaved: bool = option(
    False, "neighbours turn together, not the halves of a head"
  )
  rope_theta: float = option(10_000.0, "slowest wavelength / 2 π", above=0.0)
  rope_scaling: str = option(
    "none",
    "how wavelengths are stretched",
    choices=("none", "linear", "llama3"),
  )
  rope_factor: float = option(1.0, "by how much", minimum=1.0)
  rope_low_freq_factor: float = option(
    1.0, "llama3: stretched whole, of fewer turns in a context", above=0.0
  )
  rope_high_freq_factor: float = option(
    4.0, "llama3: not stretched, of more turns in a context", above=0.0
  )
  rope_original_max_seq_len: int = option(
    8192, "llama3: the context these turns are counted in", minimum=1
  )
  rope_local_theta: float = option(
    0.0, "of layers with a window, not stretched; 0 is as others", minimum=0.0
  )
  sliding_window: int = option(
    0, "tokens that a layer sees, itself included; 0 is all", minimum=0
  )
  sliding_window_pattern: str = option(
    "w", "layers with a window (w) and without (f), repeated to the last"
  )
  lora_rank: int = option(
    0, "rank of adapters, which alone are then trained; 0 is none", minimum=0
  )
  lora_alpha: float = option(
    16.0, "what adapters add is times this / rank", above=0.0
  )
  lora_layers: str = option(
    "all", "dense layers with adapters", choices=("all", "attention", "mlp")
  )

  def __post_init__(self):
    super().__post_init__()
    if not self.head_dim and self.d_model % self.num_heads:
      raise UserError(
        f"width {self.d_model} is not a multiple of heads {self.num_heads}",
        field="model.num_heads",
        fix="give a number of heads that divides model.width",
      )
    if self.num_heads % self.kv_heads:
      raise UserError(
        f"{self.kv_heads} is not a divisor of heads {self.num_heads}",
        field="model.num_kv_heads",
        fix="give a number that divides model.heads",
      )
    turned = self.rope_dim or self.head_size
    if self.pos_emb == "rope" and (turned % 2 or turned > self.head_size):
      raise UserError(
        f"{turned} of a head's {self.head_size} numbers cannot turn in pairs",
        field="model.rope_dim",
        fix="give an even number, at most a head's width",
      )
    if self.sliding_window and set(self.sliding_window_pattern) not in map(
      set, ("w", "f", "wf")
    ):
      raise UserError(
        f"{self.sliding_window_pattern!r} is not a pattern of layers",
        field="model.sliding_window_pattern",
        fix="give letters w (window) and f (full), such as wf",
      )
    if self.unembedding_bias and self.tie_embeddings:
      raise UserError(
        "tied embeddings have no bias",
        field="model.unembedding_bias",
        fix="give --model.tie_embeddings=false as well",
      )

  @property
  def kv_heads(self) -> int:
    """K, heads of keys and values."""
    return self.num_kv_heads or self.num_heads

  @property
  def padded_kv_heads(self) -> int:
    """`groups` and those that are zero."""
    return self.kv_heads + self.head_padding

  @property
  def padded_heads(self) -> int:
    """`heads` and those that are zero."""
    return self.num_heads // self.kv_heads * self.padded_kv_heads

  @property
  def head_size(self) -> int:
    """Width of a head."""
    return self.head_dim or self.d_model // self.num_heads

  @property
  def mlp_dim(self) -> int:
    """Width of the MLP."""
    return self.d_ff or self.mlp_ratio * self.d_model

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the embedding."""
    return self.vocab_size + self.vocab_padding

  def adapter_rank(self, part: str) -> int:
    """Rank of the adapters of "attention" or "mlp"."""
    return self.lora_rank if self.lora_layers in ("all", part) else 0

  def has_sliding_window(self, layer: int) -> bool:
    """Whether a layer sees the newest `window` tokens only."""
    pattern = self.sliding_window_pattern
    return self.sliding_window > 0 and pattern[layer % len(pattern)] == "w"
