"""A stage shows the fields of its sources that nothing reads."""

import json

from instructgpt_jax import configs
from instructgpt_jax.training import inputs


def test_a_stage_shows_unused_fields_and_skips(tmp_path, capsys):
  path = tmp_path / "x.jsonl"
  path.write_text(
    "".join(
      json.dumps(
        {
          "prompt": f"question {i}",
          "completion": "a",
          "score": i + 1,
          "label": i > 0,
          "split": "valid" if i == 9 else "train",
        }
      )
      + "\n"
      for i in range(20)
    )
  )
  parts = inputs.demonstrations(configs.Data(demonstrations=str(path)), None)
  assert (len(parts.train), len(parts.valid)) == (18, 1)
  captured = capsys.readouterr()
  shown = captured.out + captured.err
  assert "unused fields: score (20 records)" in shown
  assert "(1 completions labelled bad)" in shown
