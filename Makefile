# Each target does its own set-up; a second call re-uses .venv.
PYTHON ?= python3
WORKDIR ?= runs/demo
STUDYDIR ?= runs/study
REALDIR ?= runs/real
LABELDIR ?= runs/labeling
DATA ?=
STUDY ?= all
SIZE ?= mini
ARGS ?=

UV_VERSION := 0.13.8
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
LABEL_STAMP := $(VENV)/.installed-label
PIP := $(RUN) -m pip install -q --disable-pip-version-check

# Large pages: steps take a third less time where each page has to be asked for.
# And a small model's memory is kept from one step to the next (docs/speed.md).
MALLOC := glibc.malloc.hugetlb=1
KEPT := glibc.malloc.mmap_threshold=67108864:glibc.malloc.trim_threshold=1073741824
demo study real: MALLOC := $(MALLOC):$(KEPT)
export GLIBC_TUNABLES ?= $(MALLOC)
# Python keeps what it compiles of the packages: 2 s of each start without.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo study real label test lint format pin clean

help:
	@echo "make setup   build the environment in $(VENV)"
	@echo "make demo    the whole pipeline on the embedded world,"
	@echo "             to $(WORKDIR)/report.html (WORKDIR=... elsewhere)"
	@echo "make study   the paper's findings, to $(STUDYDIR)/index.html"
	@echo "             (STUDY=ptx_coef one of them, SIZE=... larger)"
	@echo "make real    the pipeline on SmolLM2-135M and your DATA, to $(REALDIR)"
	@echo "make label   an example of the labeling application, in $(LABELDIR)"
	@echo "make test    all tests"
	@echo "make lint    ruff, format check, words, types"
	@echo "make format  let ruff format and fix"
	@echo "make pin     requirements.in -> requirements.txt"
	@echo "make clean   remove caches and $(VENV); runs are kept"

setup: $(STAMP)

# uv is much the faster; pip is there where uv cannot reach the registry.
$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than Python 3.11" >&2; \
	  echo "  fix: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 2; }
	@echo "setting up $(VENV)"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) cannot make a virtual environment" >&2; \
	  echo "  fix: install its venv module (python3-venv)" >&2; exit 2; }
	@$(RUN) -m uv --version 2>/dev/null | grep -q "^uv $(UV_VERSION)" || \
	  $(PIP) uv==$(UV_VERSION) || \
	  echo "uv is not to be had; going on with pip"
	@$(RUN) -m uv pip install -q --python $(RUN) -r requirements.txt || \
	  $(PIP) -r requirements.txt
	@touch $@

demo: $(STAMP)
	@$(RUN) -m experiments.pipeline --preset=world --workdir=$(WORKDIR) $(ARGS)

study: $(STAMP)
	@$(RUN) -m experiments.study --workdir=$(STUDYDIR) --study=$(STUDY) \
	  --size=$(SIZE) $(ARGS)

# Without DATA it says where data are to be had; GGUF files need one package.
real: $(STAMP)
	@$(if $(DATA),$(RUN) -c 'import gguf' 2>/dev/null || $(PIP) $$(grep '^gguf==' requirements-test.txt))
	@$(RUN) -m experiments.real --workdir=$(REALDIR) $(DATA) $(ARGS)

$(LABEL_STAMP): $(STAMP) requirements-test.txt
	@echo "adding what the labeling application needs to $(VENV)"
	@$(PIP) $$(grep -E '^(krippendorff|starlette|uvicorn)==' requirements-test.txt)
	@touch $@

label: $(LABEL_STAMP)
	@$(RUN) -m instructgpt_jax.labeling example --workdir=$(LABELDIR) \
	  --demo=$(WORKDIR) --open $(ARGS)

# By pip alone, which may be told of PyTorch's index for CPUs.
$(TEST_STAMP): $(STAMP) requirements-test.txt
	@echo "adding what only tests need to $(VENV)"
	@$(PIP) $$(grep '^torch==' requirements-test.txt)
	@$(PIP) -r requirements-test.txt
	@touch $@

test: $(TEST_STAMP)
	@INSTRUCTGPT_JAX_TEST_TORCH=1 $(RUN) -m pytest -n logical --maxprocesses=8 --dist=worksteal $(ARGS)

lint: $(STAMP)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) .ci/check_words.py
	@$(RUN) -m pyright --level error

format: $(STAMP)
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

pin: $(STAMP)
	@$(RUN) -m uv pip compile requirements.in --universal --python-version 3.11 \
	  --upgrade --no-emit-index-url --no-emit-find-links --no-header -q \
	  -o requirements.txt

clean:
	@rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
