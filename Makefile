# Every target makes .venv and installs what it needs on its own.
PYTHON ?= python3
BIN := .venv/bin
SWEEP ?= sweeps/quickstart.yaml
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test test-all test-slow test-infra test-exhaustive test-cluster check bench \
  bench-gpu services clean

.venv/ready: pyproject.toml constraints.txt
	@echo "installing into .venv: a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

.venv/ready-all: .venv/ready
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,postgres,ray,browser,triton]'
	touch $@

quickstart: .venv/ready
	$(BIN)/attnres sweep run $(SWEEP)
	$(BIN)/attnres report $(SWEEP)

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: .venv/ready
	$(BIN)/python -m pytest -n 2 -m "not slow and not exhaustive and not infra and not cluster"

# The rest: slow tests two at a time, those that start real services one by one, and the whole of what the others take a
# stride of: each writing call disturbed in each way, up to hours.
test-all: test-slow test-infra test-exhaustive

test-slow: .venv/ready-all
	$(BIN)/python -m pytest -n 2 -m "slow and not infra"

test-infra: .venv/ready-all
	$(BIN)/python -m pytest -m infra

test-exhaustive: .venv/ready-all
	$(BIN)/python -m pytest -n 2 -m exhaustive -o faulthandler_timeout=7200

# Trials over two nodes, killed and stopped: up to an hour, with nothing else on the machine.
test-cluster: .venv/ready-all
	$(BIN)/python -m pytest -m cluster -o faulthandler_timeout=2700

# Debian's packages for the tests of PostgreSQL, Slurm and the browser; without them these tests
# say why they are skipped.
services:
	command -v slurmctld munged slurmdbd mariadbd chromium >/dev/null && \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null || \
	(apt-get update -qq && apt-get install -y -qq --no-install-recommends \
	slurm-wlm munge slurmdbd mariadb-server chromium postgresql) || true

# The rows of the README's table; on a quiet machine.
RESIDUAL := $(BIN)/attnres bench residual
VARIANTS := --variants "baseline full block8 naive:full naive:block8"
LARGE := $(RESIDUAL) --device cuda --dtype bf16 --dim 1024 --layers 24
bench: .venv/ready
	OMP_NUM_THREADS=2 $(RESIDUAL) $(VARIANTS)
	OMP_NUM_THREADS=2 $(RESIDUAL) $(VARIANTS) --dim 64 --layers 8 --batch 32 --seq-len 128
	$(RESIDUAL) --mode decode --batch 1 --seq-len 32 --threads 1
	$(RESIDUAL) --mode decode --batch 1 --seq-len 4096 --threads 1
	OMP_NUM_THREADS=2 $(RESIDUAL) --mode prefill --batch 1 --seq-len 4096 --chunk 512 --repeats 10
	OMP_NUM_THREADS=2 $(RESIDUAL) --mode prefill --batch 1 --seq-len 4096 --chunk 4096 --repeats 10

bench-gpu: .venv/ready
	$(LARGE) --batch 8 --seq-len 2048
	$(LARGE) --batch 1 --mode decode
	$(LARGE) --batch 32 --mode decode
	$(LARGE) --batch 1 --mode decode --seq-len 131072 --chunk 16384
	$(LARGE) --batch 1 --mode prefill --seq-len 131072 --chunk 16384

clean:
	rm -rf .venv build *.egg-info
