"""Matmuls of a decode step."""

import json

import numpy as np
import pytest

from benchmarks import products


def test_the_loop_is_the_product():
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((24, 40), np.float32)
  x = rng.standard_normal((6, 40), np.float32)
  np.testing.assert_allclose(
    products.loop(kernel, x), kernel @ x.T, rtol=1e-5, atol=1e-5
  )


def test_one_line_each(capsys):
  flags = ("--rows=2", "--inputs=64", "--outputs=512", "--mib=1", "--steps=1")
  assert products.main(flags) == 0
  lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
  assert [x["product"] for x in lines][-1] == "one row"
  assert all(x["weights_gb_per_s"] > 0 for x in lines)


@pytest.mark.parametrize("flag", ["--rows=3", "--outputs=12", "--steps=0"])
def test_mistakes(flag, capsys):
  with pytest.raises(SystemExit) as ended:
    products.main([flag])
  assert ended.value.code == 2
  assert "error" in capsys.readouterr().err
