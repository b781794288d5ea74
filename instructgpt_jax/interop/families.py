"""The table of architectures: how each is configured and its tensors called.

An entry translates both ways. A key of theirs is a field of `config.Model`
(`fields`), says what no field can (`aspects`), or has one supported value
(`only`); `fixed` is what a family has that its config.json does not say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.configs import Model
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop.aspects import (
  PARALLEL,
  Aspect,
  rope,
  shortest,
  windows,
)

_ACTIVATIONS = {
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu": "gelu",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
}
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Model)}
# What a checkpoint does not tell, and no export can hold.
_OURS = (
  "dropout",
  "init_std",
  "position_init",
  "dtype",
  "remat",
  "scan_layers",
  "vocab_padding",
  "head_padding",
  "lora_rank",
  "lora_alpha",
  "lora_layers",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """One architecture."""

  kind: str  # model_type
  language: str  # the class with logits
  scalar: str  # the class with a score
  prefix: str  # of the decoder's tensors
  names: Mapping[str, str]  # our part → theirs; {} is the layer
  fields: Mapping[str, str]  # their key → our field, or fields
  absent: Mapping[str, Any]  # their key → its value when it is not given
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  aspects: tuple[Aspect, ...] = ()
  unembedding: str = "lm_head"
  tanh: str = "gelu_new"  # how it calls GELU's tanh form
  conv: bool = False  # kernels lie as ours do, inputs first
  fused: str = "phk"  # order of projections, heads and numbers in "qkv"

  def model(self, raw: Mapping[str, Any]) -> Model:
    """The network of a config.json.

    Raises:
      UserError: a key is missing, or has a value that is not supported.
    """
    for key, value in self.only.items():
      if raw.get(key, value) not in (value, None):
        raise UserError(
          f"is {raw[key]!r}; only {value!r} is supported",
          field=key,
          fix=f"give a model of this family with {key} = {value!r}",
        )
    raw = {**self.absent, **raw}
    said: dict[str, Any] = {}
    for key, names in self.fields.items():
      if key not in raw:
        raise UserError(
          "is missing",
          field=key,
          fix="give the whole config.json",
          code="missing_config_value",
        )
      for name in names.split():
        value = _typed(key, name, self._ours(key, name, raw[key]))
        if said.setdefault(name, value) != value:
          raise UserError(
            f"is {value!r}; only {said[name]!r} is supported here",
            field=key,
            fix="give another model of this family",
          )
    found = {**self.fixed, **said}
    try:
      for aspect in self.aspects:
        found |= aspect.read(raw)
      return Model(**{k: _cast(k, v) for k, v in found.items()})
    except KeyError as error:
      raise UserError(
        "is missing",
        field=str(error.args[0]),
        fix="give the whole config.json",
        code="missing_config_value",
      ) from error
    except (TypeError, ValueError) as error:
      raise UserError(
        f"does not describe a model of kind {self.kind} ({error})",
        fix="give the config.json that the model was saved with",
        code="bad_config_value",
      ) from error
    except UserError as error:
      raise self._in_their_words(error) from error

  def _in_their_words(self, error: UserError) -> UserError:
    """An error about a field of ours, with the key of config.json."""
    ours = (error.field or "").removeprefix("model.")
    keys = [key for key, names in self.fields.items() if ours in names.split()]
    if not keys:
      return error
    return UserError(
      error.problem,
      field=keys[0],
      fix="give the config.json that the model was saved with",
      code=error.code or "contradicting_config",
    )

  def _ours(self, key: str, name: str, value: Any) -> Any:
    if name != "activation":
      return _DEFAULTS[name] if value is None else value
    if value not in _ACTIVATIONS:
      raise UserError(
        f"{value!r} is not supported",
        field=key,
        fix=f"supported are {', '.join(_ACTIVATIONS)}",
      )
    return _ACTIVATIONS[value]

  def theirs(self, c: Model) -> dict[str, Any]:
    """The keys of a config.json for a network in `canonical` form."""
    found: dict[str, Any] = {"model_type": self.kind, **self.only}
    for key, names in self.fields.items():
      value = getattr(c, names.split()[0])
      if names == "activation" and value == "gelu_tanh":
        value = self.tanh
      if names in ("final_logit_softcap", "attn_logit_softcap"):
        value = value or None
      if names == "query_pre_attn_scalar" and value == int(value):
        value = int(value)
      found[key] = value
    for aspect in self.aspects:
      found |= aspect.write(c)
    return found


def _cast(name: str, value: Any) -> Any:
  """A value as the field's type; 256 is a fine float, 0.5 no int."""
  kind = type(_DEFAULTS[name])
  found = kind(value)
  if found != value:
    raise ValueError(f"{name} {value!r}")
  return found


def _typed(key: str, name: str, value: Any) -> Any:
  """A value as our field's type; the error names the key."""
  try:
    return _cast(name, value)
  except (TypeError, ValueError, OverflowError) as error:
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    raise UserError(
      f"is {value!r}, not {kinds.get(type(_DEFAULTS[name]), 'text')}",
      field=key,
      fix="give the config.json that the model was saved with",
      code="bad_config_value",
    ) from error


def canonical(c: Model) -> Model:
  """The same network with every number said, and ours alone left out."""
  seen = "".join("fw"[c.has_sliding_window(i)] for i in range(c.num_layers))
  found: dict[str, Any] = {name: _DEFAULTS[name] for name in _OURS}
  found |= {
    "num_kv_heads": c.kv_heads,
    "head_dim": c.head_size,
    "d_ff": c.mlp_dim,
    "mlp_ratio": _DEFAULTS["mlp_ratio"],
    "query_pre_attn_scalar": c.query_pre_attn_scalar or float(c.head_size),
    "rope_dim": c.rope_dim or c.head_size,
    "sliding_window": c.sliding_window if "w" in seen else 0,
    "sliding_window_pattern": shortest(seen) if "w" in seen else "w",
  }
  rope = [n for n in _DEFAULTS if n.startswith("rope_")]
  unused = rope if c.pos_emb == "learned" else []
  if c.rope_scaling != "llama3":
    unused += [
      "rope_low_freq_factor",
      "rope_high_freq_factor",
      "rope_original_max_seq_len",
    ]
  if c.rope_scaling == "none":
    unused += ["rope_factor"]
  if "w" not in seen:
    unused += ["rope_local_theta"]
  found |= {name: _DEFAULTS[name] for name in unused}
  return dataclasses.replace(c, **found)


_GPT2 = {
  "vocab_size": "vocab_size",
  "n_positions": "max_seq_len",
  "n_embd": "d_model",
  "n_layer": "num_layers",
  "n_head": "num_heads",
  "n_inner": "d_ff",
  "activation_function": "activation",
  "layer_norm_epsilon": "norm_eps",
  "tie_word_embeddings": "tie_embeddings",
}
_GPT2_ABSENT = {
  "n_inner": None,
  "activation_function": "gelu_new",
  "layer_norm_epsilon": 1e-5,
}
_HIDDEN = {
  "vocab_size": "vocab_size",
  "max_position_embeddings": "max_seq_len",
  "hidden_size": "d_model",
  "num_hidden_layers": "num_layers",
  "num_attention_heads": "num_heads",
  "tie_word_embeddings": "tie_embeddings",
}
_LLAMA = {
  **_HIDDEN,
  "num_key_value_heads": "num_kv_heads",
  "head_dim": "head_dim",
  "intermediate_size": "d_ff",
  "rms_norm_eps": "norm_eps",
  "hidden_act": "activation",
}
_LLAMA_ABSENT = {
  "num_key_value_heads": None,
  "head_dim": None,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "attention_bias": False,
  "mlp_bias": False,
}
_LLAMA_NAMES = {
  "embedding": "embed_tokens",
  "final_norm": "norm",
  "norm_attention": "layers.{}.input_layernorm",
  "norm_mlp": "layers.{}.post_attention_layernorm",
  "query": "layers.{}.self_attn.q_proj",
  "key": "layers.{}.self_attn.k_proj",
  "value": "layers.{}.self_attn.v_proj",
  "project": "layers.{}.self_attn.o_proj",
  "gate": "layers.{}.mlp.gate_proj",
  "up": "layers.{}.mlp.up_proj",
  "down": "layers.{}.mlp.down_proj",
}
_LLAMA_FIXED = {
  "pos_emb": "rope",
  "norm": "rms",
  "gated_mlp": True,
  "qkv_bias": False,
  "out_bias": False,
  "mlp_bias": False,
}
_QK_NAMES = {
  "norm_query": "layers.{}.self_attn.q_norm",
  "norm_key": "layers.{}.self_attn.k_norm",
}
_GEMMA = {
  **{k: v for k, v in _LLAMA.items() if v != "activation"},
  "hidden_activation": "activation",
  "attention_bias": "qkv_bias out_bias",
  "query_pre_attn_scalar": "query_pre_attn_scalar",
  "attn_logit_softcapping": "attn_logit_softcap",
  "final_logit_softcapping": "final_logit_softcap",
}
_GEMMA_ABSENT = {
  "num_key_value_heads": 4,
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": True,
  "attention_bias": False,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
}
_GEMMA_NAMES = {
  **_LLAMA_NAMES,
  "norm_attended": "layers.{}.post_attention_layernorm",
  "norm_mlp": "layers.{}.pre_feedforward_layernorm",
  "norm_mixed": "layers.{}.post_feedforward_layernorm",
}
_GEMMA_FIXED = {
  "pos_emb": "rope",
  "norm": "gemma_rms",
  "block": "sandwich",
  "gated_mlp": True,
  "mlp_bias": False,
  "scale_embeddings": True,
}

FAMILIES = {
  family.kind: family
  for family in (
    Family(
      kind="gpt2",
      language="GPT2LMHeadModel",
      scalar="GPT2ForSequenceClassification",
      prefix="transformer.",
      names={
        "embedding": "wte",
        "position_embedding": "wpe",
        "final_norm": "ln_f",
        "norm_attention": "h.{}.ln_1",
        "norm_mlp": "h.{}.ln_2",
        "qkv": "h.{}.attn.c_attn",
        "project": "h.{}.attn.c_proj",
        "up": "h.{}.mlp.c_fc",
        "down": "h.{}.mlp.c_proj",
      },
      fields=_GPT2,
      absent={**_GPT2_ABSENT, "tie_word_embeddings": True},
      only={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
      },
      conv=True,
    ),
    Family(
      kind="gptj",
      language="GPTJForCausalLM",
      scalar="GPTJForSequenceClassification",
      prefix="transformer.",
      names={
        "embedding": "wte",
        "final_norm": "ln_f",
        "norm_attention": "h.{}.ln_1",
        "query": "h.{}.attn.q_proj",
        "key": "h.{}.attn.k_proj",
        "value": "h.{}.attn.v_proj",
        "project": "h.{}.attn.out_proj",
        "up": "h.{}.mlp.fc_in",
        "down": "h.{}.mlp.fc_out",
      },
      fields={**_GPT2, "rotary_dim": "rope_dim"},
      absent={
        **_GPT2_ABSENT,
        "rope_dim": 64,
        "tie_word_embeddings": False,
      },
      fixed={
        "pos_emb": "rope",
        "rope_interleaved": True,
        "block": "parallel_one_norm",
        "qkv_bias": False,
        "out_bias": False,
        "unembedding_bias": True,
      },
    ),
    Family(
      kind="gpt_neox",
      language="GPTNeoXForCausalLM",
      scalar="GPTNeoXForSequenceClassification",
      prefix="gpt_neox.",
      names={
        "embedding": "embed_in",
        "final_norm": "final_layer_norm",
        "norm_attention": "layers.{}.input_layernorm",
        "norm_mlp": "layers.{}.post_attention_layernorm",
        "qkv": "layers.{}.attention.query_key_value",
        "project": "layers.{}.attention.dense",
        "up": "layers.{}.mlp.dense_h_to_4h",
        "down": "layers.{}.mlp.dense_4h_to_h",
      },
      fields={
        **_HIDDEN,
        "intermediate_size": "d_ff",
        "hidden_act": "activation",
        "layer_norm_eps": "norm_eps",
        "attention_bias": "qkv_bias out_bias",
      },
      absent={
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "rotary_pct": 0.25,
      },
      fixed={"pos_emb": "rope"},
      aspects=(rope("rotary_emb_base", "rotary_pct"), PARALLEL),
      unembedding="embed_out",
      fused="hpk",
    ),
    Family(
      kind="opt",
      language="OPTForCausalLM",
      scalar="OPTForSequenceClassification",
      prefix="model.decoder.",
      names={
        "embedding": "embed_tokens",
        "position_embedding": "embed_positions",
        "final_norm": "final_layer_norm",
        "norm_attention": "layers.{}.self_attn_layer_norm",
        "norm_mlp": "layers.{}.final_layer_norm",
        "query": "layers.{}.self_attn.q_proj",
        "key": "layers.{}.self_attn.k_proj",
        "value": "layers.{}.self_attn.v_proj",
        "project": "layers.{}.self_attn.out_proj",
        "up": "layers.{}.fc1",
        "down": "layers.{}.fc2",
      },
      fields={
        **_HIDDEN,
        "ffn_dim": "d_ff",
        "activation_function": "activation",
        "word_embed_proj_dim": "d_model",
      },
      absent={
        "activation_function": "relu",
        "tie_word_embeddings": True,
      },
      fixed={"position_offset": 2},
      only={
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
      },
    ),
    Family(
      kind="llama",
      language="LlamaForCausalLM",
      scalar="LlamaForSequenceClassification",
      prefix="model.",
      names=_LLAMA_NAMES,
      fields={
        **_LLAMA,
        "attention_bias": "qkv_bias out_bias",
        "mlp_bias": "mlp_bias",
      },
      absent=_LLAMA_ABSENT,
      fixed=_LLAMA_FIXED,
      aspects=(rope(),),
    ),
    Family(
      kind="mistral",
      language="MistralForCausalLM",
      scalar="MistralForSequenceClassification",
      prefix="model.",
      names=_LLAMA_NAMES,
      fields=_LLAMA,
      absent={
        **_LLAMA_ABSENT,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
      },
      fixed=_LLAMA_FIXED,
      aspects=(rope(), windows(lambda raw, i: True, listed=False)),
    ),
    Family(
      kind="qwen2",
      language="Qwen2ForCausalLM",
      scalar="Qwen2ForSequenceClassification",
      prefix="model.",
      names=_LLAMA_NAMES,
      fields={k: v for k, v in _LLAMA.items() if v != "head_dim"},
      absent=_LLAMA_ABSENT,
      fixed={**_LLAMA_FIXED, "qkv_bias": True},
      aspects=(
        rope(),
        windows(
          lambda raw, i: i >= raw.get("max_window_layers", 28),
          "use_sliding_window",
        ),
      ),
    ),
    Family(
      kind="qwen3",
      language="Qwen3ForCausalLM",
      scalar="Qwen3ForSequenceClassification",
      prefix="model.",
      names={**_LLAMA_NAMES, **_QK_NAMES},
      fields={**_LLAMA, "attention_bias": "qkv_bias out_bias"},
      absent={**_LLAMA_ABSENT, "head_dim": 128},
      fixed={**_LLAMA_FIXED, "qk_norm": True},
      aspects=(
        rope(),
        windows(
          lambda raw, i: i >= raw.get("max_window_layers", 28),
          "use_sliding_window",
        ),
      ),
    ),
    Family(
      kind="starcoder2",
      language="Starcoder2ForCausalLM",
      scalar="Starcoder2ForSequenceClassification",
      prefix="model.",
      names={
        **{k: v for k, v in _LLAMA_NAMES.items() if k != "gate"},
        "up": "layers.{}.mlp.c_fc",
        "down": "layers.{}.mlp.c_proj",
      },
      fields={
        **_HIDDEN,
        "num_key_value_heads": "num_kv_heads",
        "intermediate_size": "d_ff",
        "norm_epsilon": "norm_eps",
        "hidden_act": "activation",
        "use_bias": "qkv_bias out_bias mlp_bias",
      },
      absent={
        "num_key_value_heads": 2,
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
        "tie_word_embeddings": True,
      },
      fixed={"pos_emb": "rope"},
      aspects=(rope(), windows(lambda raw, i: True, listed=False)),
      tanh="gelu_pytorch_tanh",
    ),
    Family(
      kind="gemma2",
      language="Gemma2ForCausalLM",
      scalar="Gemma2ForSequenceClassification",
      prefix="model.",
      names=_GEMMA_NAMES,
      fields=_GEMMA,
      absent={
        **_GEMMA_ABSENT,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
      },
      fixed=_GEMMA_FIXED,
      only={"use_bidirectional_attention": False},
      aspects=(rope(), windows(lambda raw, i: i % 2 == 0)),
      tanh="gelu_pytorch_tanh",
    ),
    Family(
      kind="gemma3_text",
      language="Gemma3ForCausalLM",
      scalar="Gemma3TextForSequenceClassification",
      prefix="model.",
      names={**_GEMMA_NAMES, **_QK_NAMES},
      fields=_GEMMA,
      absent={
        **_GEMMA_ABSENT,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_theta": 1e6,
      },
      fixed={**_GEMMA_FIXED, "qk_norm": True},
      only={"use_bidirectional_attention": False},
      aspects=(
        rope(local="rope_local_base_freq"),
        windows(
          lambda raw, i: (i + 1) % raw.get("sliding_window_pattern", 6) > 0
        ),
      ),
      tanh="gelu_pytorch_tanh",
    ),
  )
}


def named(kind: Any) -> Family:
  """The family of a model_type; a UserError with the nearest if unknown."""
  if kind not in FAMILIES:
    raise UserError(
      f"the architecture {kind!r} is not supported",
      field="model_type",
      fix=configs.nearest(str(kind), FAMILIES)
      or f"supported are {', '.join(FAMILIES)}",
    )
  return FAMILIES[kind]


def holding(c: Model) -> Family:
  """The first family of the table that says all of a network.

  Raises:
    UserError: there is none.
  """
  wanted = canonical(c)
  for family in FAMILIES.values():
    try:
      if canonical(family.model(family.theirs(wanted))) == wanted:
        return family
    except UserError:
      continue
  raise UserError(
    "no architecture of transformers that is known here is such a network",
    field="model",
    fix="see docs/models.md for the settings that one has",
  )
