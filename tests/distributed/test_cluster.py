"""Detection of a process from flags and schedulers' variables."""

import pytest

from instructgpt_jax import configs
from instructgpt_jax.distributed import cluster
from instructgpt_jax.errors import UserError

AUTO = configs.Processes(coordinator="auto")


def test_single_process_without_flags():
  assert cluster.detect(configs.Processes(), {"SLURM_PROCID": "1"}) is None
  section = configs.Processes(coordinator="h:1", count=1)
  assert cluster.detect(section, {}) is None


def test_detects_from_flags():
  section = configs.Processes(coordinator="[::1]:80", count=3, index=2)
  assert cluster.detect(section, {}) == ("::1", 80, 3, 2)


@pytest.mark.parametrize(
  "env, expected",
  [
    (
      {
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "8",
        "SLURM_JOB_ID": "123456",
        "SLURM_STEP_NODELIST": "gpu[007-009,12],big1",
      },
      ("gpu007", 23456, 8, 3),
    ),
    (
      {"TPU_WORKER_HOSTNAMES": "a.b,c.d", "TPU_WORKER_ID": "1"},
      ("a.b", 8476, 2, 1),
    ),
    (
      {
        "JAX_COORDINATOR_ADDRESS": "pod-0.svc:1234",
        "JAX_NUM_PROCESSES": "2",
        "JOB_COMPLETION_INDEX": "0",
        "SLURM_PROCID": "9",
      },
      ("pod-0.svc", 1234, 2, 0),
    ),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
  ],
  ids=["slurm", "tpu", "jax", "one_tpu_host"],
)
def test_detects_from_environment(env, expected):
  assert cluster.detect(AUTO, env) == expected


@pytest.mark.parametrize(
  "nodes, first",
  [
    ("n1", "n1"),
    ("n1,n2", "n1"),
    ("n[3-5]", "n3"),
    ("n[03,5]-ib", "n03-ib"),
    ("a-b[1-2],c[3-4]", "a-b1"),
  ],
)
def test_first_node(nodes, first):
  assert cluster.first_node(nodes) == first


@pytest.mark.parametrize(
  "section, env, code",
  [
    (AUTO, {}, "no_cluster"),
    (AUTO, {"SLURM_PROCID": "0"}, "bad_environment"),
    (
      AUTO,
      {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "x"},
      "bad_environment",
    ),
    (
      configs.Processes(coordinator="h:1", count=2, index=2),
      {},
      "bad_index",
    ),
    (configs.Processes(coordinator="h", count=2), {}, "bad_address"),
    (configs.Processes(coordinator="h:x", count=2), {}, "bad_address"),
    (configs.Processes(coordinator=":70000", count=2), {}, "bad_address"),
  ],
)
def test_incomplete_or_invalid_settings_are_refused(section, env, code):
  with pytest.raises(UserError) as error:
    cluster.detect(section, env)
  assert error.value.code == code


@pytest.mark.parametrize(
  "env, name",
  [
    ({"SLURM_PROCID": "0"}, "SLURM_JOB_NODELIST"),
    (
      {
        "SLURM_PROCID": "0",
        "SLURM_JOB_NODELIST": "[",
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "2",
      },
      "node list",
    ),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID"),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "x"}, "TPU_WORKER_ID"),
    (
      {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"},
      "JAX_PROCESS_ID",
    ),
  ],
)
def test_error_of_auto_names_the_variable(env, name):
  with pytest.raises(UserError) as error:
    cluster.detect(AUTO, env)
  assert error.value.code == "bad_environment"
  assert name in error.value.problem
