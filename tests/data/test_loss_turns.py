"""Loss on all assistant's turns of a conversation, or on the last."""

import json

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import encoding, reading
from instructgpt_jax.data.records import Demonstration, Turn
from instructgpt_jax.data.tokenizers import load_tokenizer
from instructgpt_jax.errors import UserError
from tests.data import tokenizer_folders as folders
from tests.interop import tiny

TALK = Demonstration(
  turns=(
    Turn("system", "the quick fox"),
    Turn("user", "hello\nthere"),
    Turn("assistant", "yes it is."),
    Turn("user", "jumps over"),
    Turn("assistant", "the lazy dog", learnable=False),
    Turn("user", "brown"),
    Turn("assistant", "12 or\n\n3?"),
    Turn("user", "hi"),
  ),
  completion="the fox",
)
EARLIER = ("yes it is.", "12 or\n\n3?")
KINDS = sorted({*folders.KINDS} - {"word_level"})


def load(path, kind, template, eos):
  return folders.load(
    path,
    folders.KINDS[kind](),
    tokenizer_config={
      "eos_token": eos,
      "bos_token": "<s>",
      "chat_template": template,
    },
  )


def weighted_runs(ids, weights):
  """Returns the runs of consecutive ids whose weight is not 0."""
  edges = np.flatnonzero(np.diff(weights, prepend=0, append=0))
  return [ids[a:b].tolist() for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize("template", sorted(folders.TEMPLATES))
@pytest.mark.parametrize("kind", KINDS)
def test_replies_and_their_ends_carry_loss_in_a_template(
  kind, template, tmp_path
):
  tokenizer = load(tmp_path, kind, *folders.TEMPLATES[template])
  data = configs.Data()
  ((ids, weights),) = encoding.encode_examples(
    [TALK], tokenizer, data, all_turns=True
  )
  ((same, last),) = encoding.encode_examples([TALK], tokenizer, data)
  np.testing.assert_array_equal(ids, same)
  runs = weighted_runs(ids, weights)
  assert [runs[-1]] == weighted_runs(same, last)
  assert len(runs) == 3
  for run, text in zip(runs, EARLIER, strict=False):
    assert run[-1] == tokenizer.eos_id and run.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(run).strip() == text


@pytest.mark.parametrize("kind", KINDS)
def test_replies_carry_loss_between_tags(kind, tmp_path):
  tokenizer = folders.load(tmp_path, folders.KINDS[kind]())
  data = configs.Data()
  ((ids, weights),) = encoding.encode_examples(
    [TALK], tokenizer, data, all_turns=True
  )
  ((same, last),) = encoding.encode_examples([TALK], tokenizer, data)
  np.testing.assert_array_equal(ids, same)
  runs = weighted_runs(ids, weights)
  assert [runs[-1]] == weighted_runs(same, last)
  assert len(runs) == 3
  for run, text in zip(runs, EARLIER, strict=False):
    assert tokenizer.decode(run).strip() == text


def test_a_token_over_the_end_of_a_reply_carries_no_loss(tmp_path):
  tokenizer = folders.byte_level()
  state = json.loads(tokenizer.to_str())
  model = state["model"]
  model["vocab"][".Ċ"] = len(model["vocab"])
  model["merges"].append([".", "Ċ"])
  state["pre_tokenizer"] = {
    "type": "ByteLevel", "add_prefix_space": False, "use_regex": False,
    "trim_offsets": True,
  }  # fmt: skip
  (tmp_path / "tokenizer.json").write_text(json.dumps(state))
  tokenizer = load_tokenizer(tmp_path)
  ((ids, weights),) = encoding.encode_examples(
    [TALK], tokenizer, configs.Data(), all_turns=True
  )
  first, second, _ = weighted_runs(ids, weights)
  assert tokenizer.decode(first) == " yes it is"
  assert tokenizer.decode(second) == " 12 or\n\n3?"


def test_transformers_masks_the_same_tokens(tmp_path):
  template = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>"
    "{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
  )
  tokenizer = load(tmp_path, "byte_level", template, "<|im_end|>")
  theirs = tiny.library("transformers").AutoTokenizer.from_pretrained(tmp_path)
  turns = [
    Turn(t.role, t.text) for t in (*TALK.turns, Turn("assistant", "the fox"))
  ]
  encoded = theirs.apply_chat_template(
    [{"role": t.role, "content": t.text} for t in turns],
    return_dict=True,
    return_assistant_tokens_mask=True,
  )
  record = Demonstration(turns=tuple(turns[:-1]), completion="the fox")
  ((ids, weights),) = encoding.encode_examples(
    [record], tokenizer, configs.Data(), all_turns=True
  )
  # Theirs has a new line after the last reply.
  assert ids.tolist() == encoded["input_ids"][: len(ids)]
  assert weights.tolist() == encoded["assistant_masks"][: len(ids)]


def test_a_template_that_moves_text_is_an_error(tmp_path):
  template = (
    "{% for m in messages %}[{{ m['content'] }}"
    "{{ messages | map(attribute='content') | map('length') | sum }}]"
    "{% endfor %}"
  )
  tokenizer = load(tmp_path, "byte_level", template, "</s>")
  with pytest.raises(UserError) as e:
    encoding.encode_examples([TALK], tokenizer, configs.Data(), all_turns=True)
  assert e.value.code == "template_changes_reply"


def test_messages_that_are_not_learned_carry_no_loss(tmp_path):
  path = tmp_path / "x.jsonl"
  roles = ("user", "assistant") * 3
  messages = [
    {"role": role, "content": f"m{i}"} for i, role in enumerate(roles)
  ]
  messages[1]["weight"] = 0
  path.write_text(json.dumps({"messages": messages}) + "\n")
  (record,) = reading.read_demonstrations(str(path))[0]
  assert [t.learnable for t in record.turns] == [True, False, True, True, True]
  messages[1]["weight"] = 1
  path.write_text(json.dumps({"messages": messages}) + "\n")
  (other,) = reading.read_demonstrations(str(path))[0]
  # Prompts are the same to everything that compares or prints them.
  assert other.turns == record.turns and repr(other) == repr(record)
  assert hash(other.turns) == hash(record.turns)


def test_best_replies_of_a_tree_are_learned_once(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text(
    json.dumps(
      {
        "message_tree_id": "1",
        "prompt": {
          "role": "prompter", "text": "q1", "replies": [
            {"role": "assistant", "text": "a1", "replies": [
              {"role": "prompter", "text": "q2", "replies": [
                {"role": "assistant", "text": "a2", "replies": []}
              ]}
            ]}
          ],
        },
      }
    )
  )  # fmt: skip
  records, _ = reading.read_demonstrations(str(path))
  assert [r.completion for r in records] == ["a1", "a2"]
  assert not records[1].turns[1].learnable
