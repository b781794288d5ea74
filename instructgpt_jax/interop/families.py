"""The supported Hugging Face architectures: config.json keys and tensor names.

Each `Family` translates in both directions. A key of config.json is a field of
`configs.Model` (`fields`), is handled by a function (`translators`), or has one
supported value (`required`). `constants` are fields that the family implies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.configs import Model
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop.field_translators import (
  TRANSLATE_PARALLEL,
  FieldTranslator,
  shortest_period,
  translate_rope,
  translate_windows,
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
_OPTIONS = configs.options(Model)
# Fields that no config.json contains.
_NATIVE_ONLY = (
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
  """A Hugging Face architecture.

  Attributes:
    model_type: its name in config.json.
    lm_class: class with a language-model head.
    reward_class: class with a score head.
    prefix: prefix of the decoder's tensor names.
    names: native layer → Hugging Face layer; {} is the layer number.
    fields: key of config.json → field of `Model`, or several fields.
    defaults: key of config.json → value if the key is missing.
    constants: fields of `Model` that the architecture implies.
    required: key of config.json → its only supported value.
    translators: functions for the keys that are not plain fields.
    unembedding: name of the language-model head.
    gelu_tanh_name: name of the tanh approximation of GELU.
    transposed_kernels: whether kernels are [inputs, outputs], as native ones.
    qkv_order: output axes of a fused "qkv" kernel: p is query, key or value, h
      the head, k the dimension within a head.
  """

  model_type: str
  lm_class: str
  reward_class: str
  prefix: str
  names: Mapping[str, str]
  fields: Mapping[str, str]
  defaults: Mapping[str, Any]
  constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  required: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  translators: tuple[FieldTranslator, ...] = ()
  unembedding: str = "lm_head"
  gelu_tanh_name: str = "gelu_new"
  transposed_kernels: bool = False
  qkv_order: str = "phk"

  def to_native(self, raw: Mapping[str, Any]) -> Model:
    """Converts config.json to a model config.

    Raises:
      UserError: a key is missing or has an unsupported value.
    """
    for key, value in self.required.items():
      if raw.get(key, value) not in (value, None):
        raise UserError(
          f"is {raw[key]!r}; only {value!r} is supported",
          field=key,
          fix=f"use a model of this family with {key} = {value!r}",
          code="bad_config_value",
        )
    raw = {**self.defaults, **raw}
    fields: dict[str, Any] = {}
    for key, names in self.fields.items():
      if key not in raw:
        raise UserError(
          "is missing",
          field=key,
          fix="use the complete config.json",
          code="missing_config_value",
        )
      for name in names.split():
        value = _cast_or_raise(
          key, name, self._to_native_value(key, name, raw[key])
        )
        if fields.setdefault(name, value) != value:
          raise UserError(
            f"is {value!r}; only {fields[name]!r} is supported for this model",
            field=key,
            fix="use another model of this family",
            code="bad_config_value",
          )
    fields = {**self.constants, **fields}
    try:
      for translator in self.translators:
        fields |= translator.read(raw)
      return Model(**{k: _cast(k, v) for k, v in fields.items()})
    except KeyError as error:
      raise UserError(
        "is missing",
        field=str(error.args[0]),
        fix="use the complete config.json",
        code="missing_config_value",
      ) from error
    except (TypeError, ValueError) as error:
      raise UserError(
        f"does not describe a {self.model_type} model ({error})",
        fix="use the config.json that the model was saved with",
        code="bad_config_value",
      ) from error
    except UserError as error:
      raise self._name_hf_key(error) from error

  def _name_hf_key(self, error: UserError) -> UserError:
    """Returns the error with the config.json key instead of the field."""
    field = (error.field or "").removeprefix("model.")
    keys = [k for k, names in self.fields.items() if field in names.split()]
    if not keys:
      return error
    return UserError(
      error.problem,
      field=keys[0],
      fix="use the config.json that the model was saved with",
      code=error.code or "contradicting_config",
    )

  def _to_native_value(self, key: str, name: str, value: Any) -> Any:
    if name != "activation":
      return _DEFAULTS[name] if value is None else value
    if value not in _ACTIVATIONS:
      raise UserError(
        f"{value!r} is not supported",
        field=key,
        fix=f"supported: {', '.join(_ACTIVATIONS)}",
        code="bad_config_value",
      )
    return _ACTIVATIONS[value]

  def to_hf(self, c: Model) -> dict[str, Any]:
    """Converts a canonical model config to config.json."""
    entries: dict[str, Any] = {"model_type": self.model_type, **self.required}
    for key, names in self.fields.items():
      value = getattr(c, names.split()[0])
      if names == "activation" and value == "gelu_tanh":
        value = self.gelu_tanh_name
      if names == "query_pre_attn_scalar" and value == int(value):
        value = int(value)
      entries[key] = value
    for translator in self.translators:
      entries |= translator.write(c)
    return entries


def _cast(name: str, value: Any) -> Any:
  """Casts a value to its field's type, without loss: 0.5 is not an int."""
  option = _OPTIONS[name]
  if option.normalize(value) is None:
    return None
  cast = option.type(value)
  if cast != value:
    raise ValueError(f"{name} {value!r}")
  return cast


def _cast_or_raise(key: str, name: str, value: Any) -> Any:
  """Casts a value to its field's type; the error names the config.json key."""
  try:
    return _cast(name, value)
  except (TypeError, ValueError, OverflowError) as error:
    types = {bool: "true or false", int: "an integer", float: "a number"}
    raise UserError(
      f"is {value!r}, not {types.get(_OPTIONS[name].type, 'text')}",
      field=key,
      fix="use the config.json that the model was saved with",
      code="bad_config_value",
    ) from error


def canonicalize(c: Model) -> Model:
  """Returns an equivalent config in canonical form.

  Derived values are explicit, and fields that the network does not use or that
  no config.json contains have their defaults, so that equal networks compare
  equal.
  """
  layers = "".join("fw"[c.has_sliding_window(i)] for i in range(c.num_layers))
  fields: dict[str, Any] = {name: _DEFAULTS[name] for name in _NATIVE_ONLY}
  fields |= {
    "num_kv_heads": c.kv_heads,
    "head_dim": c.head_size,
    "d_ff": c.mlp_dim,
    "mlp_ratio": _DEFAULTS["mlp_ratio"],
    "query_pre_attn_scalar": c.query_pre_attn_scalar or float(c.head_size),
    "rope_dim": c.rope_dim or c.head_size,
    "sliding_window": c.sliding_window if "w" in layers else None,
    "sliding_window_pattern": shortest_period(layers) if "w" in layers else "w",
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
  if "w" not in layers:
    unused += ["rope_local_theta"]
  fields |= {name: _DEFAULTS[name] for name in unused}
  return dataclasses.replace(c, **fields)


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
  family.model_type: family
  for family in (
    Family(
      model_type="gpt2",
      lm_class="GPT2LMHeadModel",
      reward_class="GPT2ForSequenceClassification",
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
      defaults={**_GPT2_ABSENT, "tie_word_embeddings": True},
      required={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
      },
      transposed_kernels=True,
    ),
    Family(
      model_type="gptj",
      lm_class="GPTJForCausalLM",
      reward_class="GPTJForSequenceClassification",
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
      defaults={
        **_GPT2_ABSENT,
        "rotary_dim": 64,
        "tie_word_embeddings": False,
      },
      constants={
        "pos_emb": "rope",
        "rope_interleaved": True,
        "block": "parallel_one_norm",
        "qkv_bias": False,
        "out_bias": False,
        "unembedding_bias": True,
      },
    ),
    Family(
      model_type="gpt_neox",
      lm_class="GPTNeoXForCausalLM",
      reward_class="GPTNeoXForSequenceClassification",
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
      defaults={
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "rotary_pct": 0.25,
      },
      constants={"pos_emb": "rope"},
      translators=(
        translate_rope("rotary_emb_base", "rotary_pct"),
        TRANSLATE_PARALLEL,
      ),
      unembedding="embed_out",
      qkv_order="hpk",
    ),
    Family(
      model_type="opt",
      lm_class="OPTForCausalLM",
      reward_class="OPTForSequenceClassification",
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
      defaults={
        "activation_function": "relu",
        "tie_word_embeddings": True,
      },
      constants={"position_offset": 2},
      required={
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
      },
    ),
    Family(
      model_type="llama",
      lm_class="LlamaForCausalLM",
      reward_class="LlamaForSequenceClassification",
      prefix="model.",
      names=_LLAMA_NAMES,
      fields={
        **_LLAMA,
        "attention_bias": "qkv_bias out_bias",
        "mlp_bias": "mlp_bias",
      },
      defaults=_LLAMA_ABSENT,
      constants=_LLAMA_FIXED,
      translators=(translate_rope(),),
    ),
    Family(
      model_type="mistral",
      lm_class="MistralForCausalLM",
      reward_class="MistralForSequenceClassification",
      prefix="model.",
      names=_LLAMA_NAMES,
      fields=_LLAMA,
      defaults={
        **_LLAMA_ABSENT,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
      },
      constants=_LLAMA_FIXED,
      translators=(
        translate_rope(),
        translate_windows(lambda raw, i: True, per_layer=False),
      ),
    ),
    Family(
      model_type="qwen2",
      lm_class="Qwen2ForCausalLM",
      reward_class="Qwen2ForSequenceClassification",
      prefix="model.",
      names=_LLAMA_NAMES,
      fields={k: v for k, v in _LLAMA.items() if v != "head_dim"},
      defaults=_LLAMA_ABSENT,
      constants={**_LLAMA_FIXED, "qkv_bias": True},
      translators=(
        translate_rope(),
        translate_windows(
          lambda raw, i: i >= raw.get("max_window_layers", 28),
          "use_sliding_window",
        ),
      ),
    ),
    Family(
      model_type="qwen3",
      lm_class="Qwen3ForCausalLM",
      reward_class="Qwen3ForSequenceClassification",
      prefix="model.",
      names={**_LLAMA_NAMES, **_QK_NAMES},
      fields={**_LLAMA, "attention_bias": "qkv_bias out_bias"},
      defaults={**_LLAMA_ABSENT, "head_dim": 128},
      constants={**_LLAMA_FIXED, "qk_norm": True},
      translators=(
        translate_rope(),
        translate_windows(
          lambda raw, i: i >= raw.get("max_window_layers", 28),
          "use_sliding_window",
        ),
      ),
    ),
    Family(
      model_type="starcoder2",
      lm_class="Starcoder2ForCausalLM",
      reward_class="Starcoder2ForSequenceClassification",
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
      defaults={
        "num_key_value_heads": 2,
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
        "tie_word_embeddings": True,
      },
      constants={"pos_emb": "rope"},
      translators=(
        translate_rope(),
        translate_windows(lambda raw, i: True, per_layer=False),
      ),
      gelu_tanh_name="gelu_pytorch_tanh",
    ),
    Family(
      model_type="gemma2",
      lm_class="Gemma2ForCausalLM",
      reward_class="Gemma2ForSequenceClassification",
      prefix="model.",
      names=_GEMMA_NAMES,
      fields=_GEMMA,
      defaults={
        **_GEMMA_ABSENT,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
      },
      constants=_GEMMA_FIXED,
      required={"use_bidirectional_attention": False},
      translators=(
        translate_rope(),
        translate_windows(lambda raw, i: i % 2 == 0),
      ),
      gelu_tanh_name="gelu_pytorch_tanh",
    ),
    Family(
      model_type="gemma3_text",
      lm_class="Gemma3ForCausalLM",
      reward_class="Gemma3TextForSequenceClassification",
      prefix="model.",
      names={**_GEMMA_NAMES, **_QK_NAMES},
      fields=_GEMMA,
      defaults={
        **_GEMMA_ABSENT,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_theta": 1e6,
      },
      constants={**_GEMMA_FIXED, "qk_norm": True},
      required={"use_bidirectional_attention": False},
      translators=(
        translate_rope(local_key="rope_local_base_freq"),
        translate_windows(
          lambda raw, i: (i + 1) % raw.get("sliding_window_pattern", 6) > 0
        ),
      ),
      gelu_tanh_name="gelu_pytorch_tanh",
    ),
  )
}


def get_family(model_type: Any) -> Family:
  """Returns the family with a model_type.

  Raises:
    UserError: it is not supported; the fix names the nearest one.
  """
  if model_type not in FAMILIES:
    raise UserError(
      f"the architecture {model_type!r} is not supported",
      field="model_type",
      fix=configs.nearest(str(model_type), FAMILIES)
      or f"supported: {', '.join(FAMILIES)}",
      code="unknown_architecture",
    )
  return FAMILIES[model_type]


def family_for(c: Model) -> Family:
  """Returns the first family whose config.json describes the network fully.

  Raises:
    UserError: no family does.
  """
  canonical = canonicalize(c)
  for family in FAMILIES.values():
    try:
      if canonicalize(family.to_native(family.to_hf(canonical))) == canonical:
        return family
    except UserError:
      continue
  raise UserError(
    "no supported architecture of transformers can represent this model",
    field="model",
    fix="see docs/models.md for each architecture's settings",
    code="no_architecture",
  )
