"""Typed configs: frozen dataclasses whose defaults are the paper's numbers.

Every field carries its help text, unit, paper section and allowed range, which
`flags` turns into an absl flag. [P], [C], [D] and [I] mean: printed in the
paper, from another source, our arithmetic, our inference. Nothing here reads a
file or a clock.
"""

from __future__ import annotations

import calendar
import dataclasses
import difflib
import re
from typing import Any

from instructgpt_jax.errors import UserError


def option(
  default: Any,
  help: str,
  *,
  unit: str = "",
  paper: str = "",
  minimum: float | None = None,
  maximum: float | None = None,
  above: float | None = None,
  choices: tuple[str, ...] = (),
) -> Any:
  """A dataclass field with what `--help` and validation need to know.

  Args:
    default: the default value; its type is the flag's type.
    help: one sentence.
    unit: for example "tokens", "episodes".
    paper: section of arXiv:2203.02155, with a tag when it is not printed there.
    minimum: smallest allowed value, inclusive.
    maximum: largest allowed value, inclusive.
    above: exclusive lower bound.
    choices: allowed strings.
  """
  return dataclasses.field(
    default=default,
    metadata=dict(
      help=help,
      unit=unit,
      paper=paper,
      minimum=minimum,
      maximum=maximum,
      above=above,
      choices=choices,
    ),
  )


def allowed_range(metadata: Any) -> str:
  """The allowed values of a field in words, "" when there is no bound."""
  if metadata.get("choices"):
    return "one of " + ", ".join(repr(c) for c in metadata["choices"])
  low, high = metadata.get("minimum"), metadata.get("maximum")
  above = metadata.get("above")
  left = (
    f"> {above}"
    if above is not None
    else (f">= {low}" if low is not None else "")
  )
  right = f"<= {high}" if high is not None else ""
  return " and ".join(part for part in (left, right) if part)


def _in_range(value: Any, metadata: Any) -> bool:
  if metadata.get("choices"):
    return value in metadata["choices"]
  low, high = metadata.get("minimum"), metadata.get("maximum")
  above = metadata.get("above")
  if isinstance(value, float) and value != value:
    return False
  return (
    (low is None or value >= low)
    and (high is None or value <= high)
    and (above is None or value > above)
  )


def _is_date(text: str) -> bool:
  """Whether a text is a date of the calendar, as YYYY-MM-DD."""
  if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
    return False
  year, month, day = map(int, text.split("-"))
  if year < 1 or not 1 <= month <= 12:
    return False
  return 1 <= day <= calendar.monthrange(year, month)[1]


class Checked:
  """Refuses values outside a field's range where the config is made."""

  def __post_init__(self):
    for field in dataclasses.fields(self):  # type: ignore[arg-type]
      value = getattr(self, field.name)
      if not _in_range(value, field.metadata):
        raise UserError(
          f"{value!r} is not allowed",
          field=f"{type(self).__name__.lower()}.{field.name}",
          fix=f"give a value {allowed_range(field.metadata)}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Checked):
  """A decoder; the defaults are the GPT family's, as in GPT-2.

  The fields after `scan_layers` make other families of it: docs/models.md.
  """

  vocab_size: int = option(
    0, "vocabulary size; 0 takes the tokenizer's", unit="tokens", minimum=0
  )
  context: int = option(
    2048, "positions of a row", unit="tokens", paper="C [P]", minimum=2
  )
  layers: int = option(24, "decoder blocks", paper="GPT-3 table 2.1", minimum=1)
  width: int = option(
    2048, "residual width d_model", paper="GPT-3 table 2.1", minimum=1
  )
  heads: int = option(16, "attention heads", paper="GPT-3 table 2.1", minimum=1)
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
  kv_heads: int = option(
    0, "heads of keys and values, a divisor of heads; 0 is heads", minimum=0
  )
  head_dim: int = option(0, "width of a head; 0 is width / heads", minimum=0)
  mlp_width: int = option(0, "d_ff; 0 is mlp_ratio · width", minimum=0)
  activation: str = option(
    "gelu_tanh",
    "of the MLP",
    choices=("gelu_tanh", "gelu", "relu", "silu"),
  )
  gated: bool = option(False, "the MLP's activation multiplies a second half")
  norm: str = option(
    "layer",
    "LayerNorm, RMSNorm, or RMSNorm whose scale is stored less one",
    choices=("layer", "rms", "rms_less_one"),
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
  query_scalar: float = option(
    0.0, "scores are divided by its root; 0 is head_dim", minimum=0.0
  )
  attention_cap: float = option(
    0.0, "soft cap of attention's scores; 0 is none", minimum=0.0
  )
  logit_cap: float = option(0.0, "soft cap of logits; 0 is none", minimum=0.0)
  scale_embeddings: bool = option(
    False, "embeddings are multiplied by the root of width"
  )
  unembedding_bias: bool = option(
    False, "bias of the logits; with untied embeddings"
  )
  positions: str = option(
    "learned", "how a token knows its place", choices=("learned", "rotary")
  )
  position_offset: int = option(
    0, "unused rows ahead of the learned positions", minimum=0
  )
  rotary_dim: int = option(
    0, "numbers of a head that turn; 0 is all", minimum=0
  )
  rotary_pairs: bool = option(
    False, "neighbours turn together, not the halves of a head"
  )
  rotary_base: float = option(10_000.0, "slowest wavelength / 2 π", above=0.0)
  rotary_scaling: str = option(
    "none",
    "how wavelengths are stretched",
    choices=("none", "linear", "llama3"),
  )
  rotary_factor: float = option(1.0, "by how much", minimum=1.0)
  rotary_low: float = option(
    1.0, "llama3: stretched whole, of fewer turns in a context", above=0.0
  )
  rotary_high: float = option(
    4.0, "llama3: not stretched, of more turns in a context", above=0.0
  )
  rotary_context: int = option(
    8192, "llama3: the context these turns are counted in", minimum=1
  )
  rotary_local_base: float = option(
    0.0, "of layers with a window, not stretched; 0 is as others", minimum=0.0
  )
  window: int = option(
    0, "tokens that a layer sees, itself included; 0 is all", minimum=0
  )
  window_pattern: str = option(
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
    if not self.head_dim and self.width % self.heads:
      raise UserError(
        f"width {self.width} is not a multiple of heads {self.heads}",
        field="model.heads",
        fix="give a number of heads that divides model.width",
      )
    if self.heads % self.groups:
      raise UserError(
        f"{self.groups} is not a divisor of heads {self.heads}",
        field="model.kv_heads",
        fix="give a number that divides model.heads",
      )
    turned = self.rotary_dim or self.head_size
    if self.positions == "rotary" and (turned % 2 or turned > self.head_size):
      raise UserError(
        f"{turned} of a head's {self.head_size} numbers cannot turn in pairs",
        field="model.rotary_dim",
        fix="give an even number, at most a head's width",
      )
    if self.window and set(self.window_pattern) not in map(
      set, ("w", "f", "wf")
    ):
      raise UserError(
        f"{self.window_pattern!r} is not a pattern of layers",
        field="model.window_pattern",
        fix="give letters w (window) and f (full), such as wf",
      )
    if self.unembedding_bias and self.tie_embeddings:
      raise UserError(
        "tied embeddings have no bias",
        field="model.unembedding_bias",
        fix="give --model.tie_embeddings=false as well",
      )

  @property
  def groups(self) -> int:
    """K, heads of keys and values."""
    return self.kv_heads or self.heads

  @property
  def all_groups(self) -> int:
    """`groups` and those that are zero."""
    return self.groups + self.head_padding

  @property
  def all_heads(self) -> int:
    """`heads` and those that are zero."""
    return self.heads // self.groups * self.all_groups

  @property
  def head_size(self) -> int:
    """Width of a head."""
    return self.head_dim or self.width // self.heads

  @property
  def hidden(self) -> int:
    """Width of the MLP."""
    return self.mlp_width or self.mlp_ratio * self.width

  @property
  def rows(self) -> int:
    """Rows of the embedding."""
    return self.vocab_size + self.vocab_padding

  def adapted(self, part: str) -> int:
    """Rank of the adapters of "attention" or "mlp"."""
    return self.lora_rank if self.lora_layers in ("all", part) else 0

  def windowed(self, layer: int) -> bool:
    """Whether a layer sees the newest `window` tokens only."""
    pattern = self.window_pattern
    return self.window > 0 and pattern[layer % len(pattern)] == "w"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(Checked):
  """Adam with float32 moments; ε is added outside the square root."""

  learning_rate: float = option(
    9.65e-6, "peak learning rate", paper="C.1 [P]", above=0.0, maximum=1.0
  )
  schedule: str = option(
    "cosine",
    "shape after warm-up",
    paper="C.1-C.4 [P]",
    choices=("cosine", "constant"),
  )
  final_fraction: float = option(
    0.1,
    "cosine ends at this share of the peak",
    paper="C.1 [P]",
    minimum=0.0,
    maximum=1.0,
  )
  warmup_steps: int = option(
    0,
    "length of the linear warm-up; -1 uses ppo.warmup_iterations (PPO only)",
    unit="updates",
    paper="C.1 none, C.4 10 iterations",
    minimum=-1,
  )
  warmup_init: float = option(
    0.0,
    "warm-up starts at this share of the peak",
    paper="C.4 0.1 [P]",
    minimum=0.0,
    maximum=1.0,
  )
  b1: float = option(0.9, "Adam β1", paper="C [P]", minimum=0.0, maximum=0.9999)
  b2: float = option(
    0.95, "Adam β2", paper="C [P]", minimum=0.0, maximum=0.99999
  )
  eps: float = option(
    1e-8, "Adam ε, outside the square root", paper="unstated [I]", above=0.0
  )
  weight_decay: float = option(
    0.0, "decoupled weight decay on matrices", paper="unstated [I]", minimum=0.0
  )
  clip_norm: float = option(
    1.0,
    "global gradient norm limit; 0 is off",
    paper="unstated [I]",
    minimum=0.0,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer(Checked):
  """Which tokenizer; one is trained on the data when no path is given."""

  path: str = option(
    "", "a .model, a tokenizer.json, or a folder with encoder.json/vocab.bpe"
  )
  vocab_size: int = option(
    2048,
    "size of a trained sentencepiece vocabulary",
    unit="tokens",
    minimum=64,
  )
  kind: str = option(
    "bpe",
    "sentencepiece algorithm when one is trained",
    choices=("bpe", "unigram", "word"),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Checked):
  """Four sources; each a path, a quoted glob, a comma list, or tfds:…

  `explicit` names the fields of this section that the user has set. A limit
  that the user has set may drop most of a source. A setting that the user has
  not set is taken from the stage that a run starts from. `explicit` also names
  the learning rates that the user has set, such as optimizer.learning_rate.
  """

  demonstrations: str = option("", "prompt/completion records for SFT")
  comparisons: str = option("", "ranked or paired completions for the RM")
  prompts: str = option("", "prompts for PPO and evaluation")
  pretraining: str = option("", "documents for pretraining and ptx")
  user_tag: str = option("Human:", "stands before a user's turn")
  assistant_tag: str = option("Assistant:", "stands before a reply")
  turn_separator: str = option(
    "\\n\\n", "stands between turns; \\n means a new line"
  )
  chat_template: bool = option(
    True, "prompts by the tokenizer's chat template, where it has one"
  )
  template_date: str = option(
    "2025-01-01",
    "date, as YYYY-MM-DD, that a chat template gets when it asks for today's",
  )
  max_prompt_tokens: int = option(
    1024,
    "longer prompts are dropped and counted",
    unit="tokens",
    paper="C [P]",
    minimum=1,
  )
  max_response_tokens: int = option(
    1024, "longest response", unit="tokens", paper="C [P]", minimum=1
  )
  max_prompts_per_user: int = option(
    200, "prompts kept per user id", paper="A [P]", minimum=1
  )
  common_prefix_chars: int = option(
    200,
    "prompts of --data.prompts whose last turns begin with this many equal"
    " characters count as one; 0 compares whole prompts",
    unit="characters",
    paper="A [P], length [I]",
    minimum=0,
  )
  filter_personal: bool = option(
    True, "drop training records with personal information", paper="A [P]"
  )
  valid_fraction: float = option(
    0.1,
    "share of users for validation",
    paper="A [P], share [I]",
    minimum=0.0,
    maximum=0.5,
  )
  test_fraction: float = option(
    0.1,
    "share of users for test",
    paper="A [P], share [I]",
    minimum=0.0,
    maximum=0.5,
  )
  max_dropped: float = option(
    0.5,
    "largest share of a source's records that may be dropped or skipped; more"
    " is an error, unless you set the flag that drops the most",
    minimum=0.0,
    maximum=1.0,
  )
  explicit: str = option(
    "",
    "comma list of the data fields set by flag or --config; the program fills"
    " it in",
  )

  def __post_init__(self):
    super().__post_init__()
    if not _is_date(self.template_date):
      raise UserError(
        f"{self.template_date!r} is not a date",
        field="data.template_date",
        fix="give a date as YYYY-MM-DD, such as 2025-01-01",
        code="bad_date",
      )

  def is_explicit(self, name: str) -> bool:
    """Whether the user has set a field of this section."""
    return name in self.explicit.split(",")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh(Checked):
  """Devices of the named mesh (data, fsdp, tensor)."""

  data: int = option(-1, "batch shards; -1 takes what is left", minimum=-1)
  fsdp: int = option(1, "parameter shards", minimum=1)
  tensor: int = option(1, "shards within a layer", minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes(Checked):
  """The processes of one run, on one host or many."""

  coordinator: str = option(
    "", "HOST:PORT of process 0, or auto: found from Slurm, a TPU slice, or"
    " JAX_COORDINATOR_ADDRESS",
  )  # fmt: skip
  count: int = option(1, "processes", minimum=1)
  index: int = option(0, "which of them this is", minimum=0)
  timeout: float = option(
    300.0, "how long to wait for one that does not come", unit="seconds",
    above=0.0,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Checked):
  """Logging and saving."""

  log_every: int = option(10, "metrics every so many steps", minimum=1)
  save_every: int = option(
    100, "checkpoint every so many steps; 0 only at the end", minimum=0
  )
  keep: int = option(2, "newest checkpoints kept", minimum=1)
  keep_every: int = option(
    0, "first checkpoint after every so many steps kept as well; 0 none",
    minimum=0,
  )  # fmt: skip
  keep_best: str = option(
    "", "measure by which the best checkpoint is kept as well, in stages that"
    " have it; a validation measure is saved at whenever it is taken",
    choices=("", "valid_loss", "valid_rm_score", "reward"),
  )  # fmt: skip
  tensorboard: bool = option(True, "write TensorBoard files")
  compile_cache: str = option(
    "", "folder that keeps compiled programs; '' is the user's cache, none none"
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(Checked):
  """Language modelling on raw text, packed rows."""

  steps: int = option(1000, "optimiser updates", unit="updates", minimum=1)
  batch_size: int = option(
    512, "rows a step", unit="rows", paper="GPT-3 table 2.1", minimum=1
  )
  microbatch: int = option(
    0, "rows per accumulated microbatch; 0 is the whole batch", minimum=0
  )
  sequence: int = option(
    0, "row length; 0 is the model's context", unit="tokens", minimum=0
  )
  dropout: float = option(0.0, "residual dropout", minimum=0.0, maximum=0.99)
  eval_every: int = option(
    200, "validation loss every so many steps", minimum=1
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sft(Checked):
  """Supervised fine-tuning on demonstrations."""

  epochs: int = option(16, "passes over the data", paper="C.1 [P]", minimum=1)
  batch_size: int = option(
    32, "demonstrations a step", unit="examples", paper="C.1 [P]", minimum=1
  )
  microbatch: int = option(
    0, "examples per accumulated microbatch; 0 is the whole batch", minimum=0
  )
  pack: bool = option(True, "pack several demonstrations into a row")
  mask_prompt: bool = option(
    True, "loss on completions only", paper="unstated [I]"
  )
  pretraining_fraction: float = option(
    0.0,
    "share of pretraining rows mixed in",
    paper="C.3: 0.1 [P]",
    minimum=0.0,
    maximum=0.9,
  )
  dropout: float = option(
    0.2, "residual dropout", paper="C.1 [P]", minimum=0.0, maximum=0.99
  )
  select_by: str = option(
    "auto",
    "what chooses the checkpoint: RM score when a reward model is given",
    paper="C.1 [P]",
    choices=("auto", "reward", "loss", "last"),
  )
  reward_model: str = option("", "workdir of a reward model for selection")
  select_prompts: int = option(
    256,
    "most validation prompts answered for selection",
    unit="prompts",
    minimum=1,
  )
  select_samples: int = option(
    1, "answers to each of them", unit="samples", minimum=1
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward(Checked):
  """The reward model: K ranked completions of a prompt are one element."""

  epochs: int = option(1, "passes over the data", paper="C.2 [P]", minimum=1)
  batch_size: int = option(
    64,
    "prompts a step, each with its K completions",
    unit="prompts",
    paper="C.2 [P]",
    minimum=1,
  )
  microbatch: int = option(
    0, "prompts per accumulated microbatch; 0 is the whole batch", minimum=0
  )
  dropout: float = option(
    0.0, "residual dropout", paper="unstated [I]", minimum=0.0, maximum=0.99
  )
  normalize: bool = option(
    True,
    "set the bias so that demonstrations score 0 on average",
    paper="3.5 [P]",
  )
  pairs: bool = option(
    False,
    "each pair is an element of its own, shuffled among all: overfits",
    paper="3.5 [P]: what not to do",
  )
  max_rankings: int = option(
    0, "rankings trained on; 0 is all", unit="prompts", minimum=0
  )
  max_completions: int = option(
    0, "completions kept of each ranking; 0 is all", minimum=0, maximum=9
  )
  leave_out: str = option(
    "",
    "labelers whose rankings are not trained on but tested on, comma list",
    paper="E.2 [P]: five-fold cross-validation",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ppo(Checked):
  """PPO and PPO-ptx. Defaults follow arXiv:2203.02155, appendix C.4."""

  episodes: int = option(
    256_000, "episodes in all", unit="episodes", paper="C.4 [P]", minimum=1
  )
  rollout_batch: int = option(
    512, "episodes an iteration", unit="episodes", paper="C.4 [P]", minimum=1
  )
  minibatch: int = option(
    64, "episodes an update", unit="episodes", paper="C.4 [P]", minimum=1
  )
  microbatch: int = option(
    0,
    "rows of packed episodes at a time; 0 is a quarter of the minibatch or more"
    " on one device, all of it on several",
    minimum=0,
  )
  inner_epochs: int = option(
    1, "passes over a rollout batch", paper="C.4 [P]", minimum=1
  )
  warmup_iterations: int = option(
    10,
    "length of the linear warm-up of optimizers whose warmup_steps is -1",
    unit="iterations",
    paper="C.4 [P]",
    minimum=0,
  )
  kl_coef: float = option(
    0.02,
    "β, per-token penalty towards the initial policy",
    paper="C.4 [P]",
    minimum=0.0,
  )
  kl_target: float = option(
    0.0,
    "KL of an episode that an adaptive β aims at; 0 keeps β fixed",
    unit="nats",
    paper="lm-human-preferences [C]",
    minimum=0.0,
  )
  kl_horizon: float = option(
    10_000.0,
    "episodes over which β adapts",
    unit="episodes",
    paper="lm-human-preferences [C]",
    above=0.0,
  )
  ptx_coef: float = option(
    27.8,
    "γ, weight of the pretraining loss; 0 is plain PPO",
    paper="C.4 [P]",
    minimum=0.0,
  )
  ptx_ratio: int = option(
    8, "pretraining rows per episode", paper="C.4 [P]", minimum=1
  )
  ptx_microbatch: int = option(
    64, "pretraining rows per accumulated microbatch", unit="rows", minimum=1
  )
  ptx_sequence: int = option(
    0,
    "length of those rows; 0 is the model's context",
    unit="tokens",
    minimum=0,
  )
  clip_ratio: float = option(
    0.2,
    "half-width of the policy's trust interval",
    paper="C.4 [P]",
    above=0.0,
    maximum=1.0,
  )
  clip_value: float = option(
    0.2,
    "half-width around the rollout's values; 0 is off",
    paper="unstated; lineage [I]",
    minimum=0.0,
  )
  discount: float = option(
    1.0, "no discount", paper="C.4 [P]", minimum=0.0, maximum=1.0
  )
  gae_lambda: float = option(
    0.95,
    "λ of generalised advantage estimation",
    paper="unstated [I]",
    minimum=0.0,
    maximum=1.0,
  )
  whiten_rewards: bool = option(
    False,
    "divide rewards by their deviation, mean kept",
    paper="lm-human-preferences [C]",
  )
  whiten_advantages: bool = option(
    True, "mean 0 and variance 1 over the batch", paper="lineage [I]"
  )
  temperature: float = option(
    1.0, "of sampling and of every log-probability", paper="C.4 [P]", above=0.0
  )
  top_k: int = option(0, "refused in training when not 0", minimum=0, maximum=0)
  top_p: float = option(
    1.0, "refused in training when not 1", minimum=1.0, maximum=1.0
  )
  eos_penalty: float = option(
    0.0,
    "score taken away from a response that never ended",
    paper="lineage [C]",
    minimum=0.0,
  )
  bootstrap_truncated: bool = option(
    False,
    "value after a truncated response is V instead of 0",
    paper="unstated [I]",
  )
  value_from_reward: bool = option(
    True, "value network starts as the reward model", paper="C.4 [P]"
  )
  ema_decay: float = option(
    0.992,
    "decay of the averaged weights, applied once per update; 0 saves the last"
    " weights; the average is bias-corrected, as in Adam",
    paper="C.4 [P]",
    minimum=0.0,
    maximum=0.999999,
  )
  reward_model: str = option("", "workdir of the reward model")
  snapshot_every: int = option(
    0,
    "the policy of every so many iterations stays in snapshots/; 0 is none",
    unit="iterations",
    minimum=0,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class World(Checked):
  """Sizes of the embedded world's files, used where no data are given."""

  pretraining_tokens: int = option(
    2_500_000, "words of the web", unit="tokens", minimum=1000
  )
  demonstrations: int = option(
    1400, "training demonstrations", unit="examples", minimum=10
  )
  train_prompts: int = option(
    6000, "for PPO and labeling", unit="prompts", minimum=10
  )
  test_prompts: int = option(
    1800, "held out for the report", unit="prompts", minimum=10
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labeling(Checked):
  """Rankings of our own models' samples, by the world's labelers."""

  prompts: int = option(
    1000, "prompts ranked a round", unit="prompts", minimum=1
  )
  completions: int = option(
    6,
    "K, completions ranked a prompt",
    paper="3.5 [P]: 4 to 9",
    minimum=2,
    maximum=9,
  )
  rounds: int = option(
    2,
    "rounds of labeling; the second ranks the newest policy's samples",
    paper="3.1 [P]",
    minimum=1,
  )
  valid_prompts: int = option(
    300, "held-out prompts ranked a round", unit="prompts", minimum=1
  )
  probe_episodes: int = option(
    1280,
    "episodes of the early policy that a later round samples",
    unit="episodes",
    minimum=1,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Checked):
  """What the report measures."""

  prompts: int = option(
    1000, "held-out prompts", unit="prompts", paper="3,196 [P]", minimum=1
  )
  split: str = option(
    "test",
    "split of --data.prompts to evaluate on; train measures on prompts that the"
    " models were trained on",
    choices=("test", "valid", "train"),
  )
  samples: int = option(
    2, "samples a prompt at temperature 1", unit="samples", minimum=1
  )
  best_of_n: int = option(
    8, "samples from which the RM picks one", unit="samples", minimum=1
  )
  bootstrap: int = option(
    2000, "bootstrap resamples over distinct prompts", minimum=100
  )
  batch_size: int = option(128, "rows a decoding batch", minimum=1)
  prefix_prompts: int = option(
    200,
    "validation prompts on which a prefix is chosen",
    unit="prompts",
    minimum=1,
  )
  judge_fraction: float = option(
    0.4,
    "share of the rankings kept for the judge where there is no gold",
    above=0.0,
    maximum=0.9,
  )
  prefixes: str = option(
    "",
    "candidate prefixes of the prompted baseline, separated by |",
    paper="B [P]: four candidates",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Checked):
  """What every experiment has."""

  seed: int = option(0, "of everything random", minimum=0)
  init_from: str = option(
    "", "workdir of an earlier stage, or Hugging Face directory, to start from"
  )
  model: Model = Model()
  tokenizer: Tokenizer = Tokenizer()
  data: Data = Data()
  mesh: Mesh = Mesh()
  processes: Processes = Processes()
  run: Run = Run()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainExperiment(Experiment):
  pretrain: Pretrain = Pretrain()
  optimizer: Optimizer = Optimizer(
    learning_rate=2e-4, weight_decay=0.1, warmup_steps=100
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftExperiment(Experiment):
  """`sft` and `policy_init`."""

  sft: Sft = Sft()
  optimizer: Optimizer = Optimizer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardExperiment(Experiment):
  reward: Reward = Reward()
  optimizer: Optimizer = Optimizer(learning_rate=9e-6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoExperiment(Experiment):
  """`ppo` (γ = 0) and `ppo_ptx`."""

  ppo: Ppo = Ppo()
  optimizer: Optimizer = Optimizer(
    learning_rate=1.18e-5,
    schedule="constant",
    warmup_steps=-1,
    warmup_init=0.1,
  )
  value_optimizer: Optimizer = Optimizer(
    learning_rate=9e-6,
    schedule="constant",
    warmup_steps=-1,
    warmup_init=0.1,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(Checked):
  """One model, measured as everything else is."""

  reward_model: str = option("", "workdir of the reward model that scores")
  start: str = option(
    "", "workdir of the policy's start, to which KL is measured"
  )
  world: str = option("", "folder of the embedded world, whose gold judges")
  judge: str = option("", "workdir of a reward model that judges, without gold")
  prefix: str = option(
    "", "text before each prompt; auto lets the reward model choose one"
  )
  filter: str = option(
    "",
    "phrases separated by |: an answer with one of them is drawn anew, up to"
    " evaluation.best_of_n times, and then refused",
  )
  refusal: str = option(
    "i can not help with that .", "what stands in for a filtered answer"
  )
  samples_kept: int = option(
    0,
    "answers a prompt whose gold and RM scores are kept for best-of-n curves",
    unit="samples",
    minimum=0,
  )
  task_items: int = option(
    250, "items of each public task; 0 leaves them out", minimum=0
  )
  rows: int = option(
    1024, "held-out rows for the LM loss; 0 leaves it out", minimum=0
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateExperiment(Experiment):
  """`evaluate`: the model of `init_from` on held-out prompts."""

  measure: Measure = Measure()
  evaluation: Evaluation = Evaluation()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineExperiment(Experiment):
  """All stages in order, then the report."""

  until: str = option(
    "",
    "stops after this stage; the same command without it goes on",
    choices=("", "world", "pretrain", "policy_init", "reward", "sft"),
  )
  world: World = World()
  pretrain: Pretrain = Pretrain()
  pretrain_optimizer: Optimizer = Optimizer(
    learning_rate=2e-4, weight_decay=0.1, warmup_steps=100
  )
  sft: Sft = Sft()
  sft_optimizer: Optimizer = Optimizer()
  policy_init: Sft = Sft(epochs=2, pretraining_fraction=0.1)
  policy_init_optimizer: Optimizer = Optimizer(learning_rate=5e-6)
  labeling: Labeling = Labeling()
  reward: Reward = Reward()
  reward_optimizer: Optimizer = Optimizer(learning_rate=9e-6)
  ppo: Ppo = Ppo()
  ppo_optimizer: Optimizer = PpoExperiment.optimizer
  ptx_optimizer: Optimizer = PpoExperiment.optimizer
  value_optimizer: Optimizer = PpoExperiment.value_optimizer
  evaluation: Evaluation = Evaluation()


def nearest(name: str, names: Any) -> str:
  """' did you mean X?' for the nearest of `names`, or ''."""
  found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
  return f"did you mean {found[0]!r}?" if found else ""
