# Every task of the project. `make` alone lists them; CONTRIBUTING.md says when to use which.

# What `make serve` serves and where: make serve PORT=9100 MODEL=/path/or/hugging-face-id
PORT ?= 9000
MODEL ?=
# More options of `triton-vlm serve`, such as --host 0.0.0.0.
SERVE_OPTIONS ?=
# More options of pytest, such as -k scheduler, and of the benchmark.
PYTEST_OPTIONS ?=
BENCH_OPTIONS ?=
# The Python to make environments with; default: the first suitable one that is installed.
PYTHON ?=

SERVE_ENV := .venv
TEST_ENV := .venv-test
# NumPy 2, which NVIDIA's container has and the packaged Triton's Python stub does not allow: it lies in front
# of the environment's own NumPy 1, so that PyTorch is installed once.
NUMPY2 := $(TEST_ENV)/numpy2
# What computes with NumPy. Building engines does not, and takes longest.
NUMPY2_TESTS := tests/unit/python_backend tests/unit/builders --ignore=tests/unit/builders/test_tensorrt_rtx.py
# Where tests run. On a GPU machine or in NVIDIA's container: make test-gpu TEST_PYTHON=python3
TEST_PYTHON ?= $(TEST_ENV)/bin/python
PACKAGES := builders python_backend openai_frontend triton_vlm
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile

.DEFAULT_GOAL := help
.PHONY: help install serve test test-unit test-numpy2 test-page test-triton test-gpu check fix bench bench-peers \
	clean test-env chromium node-client

help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(SERVE_ENV)/installed ## Create .venv with everything that serving needs

# Packages are installed without their compiled files, 150 MB of which nobody uses: the first start
# writes the others, and the second one is quick.
serve bench bench-peers: export PYTHONDONTWRITEBYTECODE =
serve: $(SERVE_ENV)/installed ## Build the default model (or MODEL=...) and serve it on PORT=9000
	@exec $(SERVE_ENV)/bin/triton-vlm serve --port "$(PORT)" $(SERVE_OPTIONS) $(if $(MODEL),"$(MODEL)")

# Another TEST_PYTHON has one NumPy, its own. Both runs keep about one core busy, so they go side by side.
test: test-env chromium node-client ## Run the whole test suite, and what computes on NumPy 2 too
ifeq ($(TEST_PYTHON),$(TEST_ENV)/bin/python)
	@mkdir -p build
	@$(MAKE) --no-print-directory test-numpy2 >build/test-numpy2.log 2>&1 & other=$$!; \
	trap 'kill $$other' INT TERM; \
	$(TEST_PYTHON) -m pytest $(PYTEST_OPTIONS); status=$$?; \
	echo "And on NumPy 2 (build/test-numpy2.log):"; \
	wait $$other || { status=1; cat build/test-numpy2.log; }; \
	tail -n 1 build/test-numpy2.log; exit $$status
else
	$(TEST_PYTHON) -m pytest $(PYTEST_OPTIONS)
endif

test-unit: test-env ## Run the unit tests only
	$(TEST_PYTHON) -m pytest tests/unit $(PYTEST_OPTIONS)

test-page: test-env chromium ## Run the tests that open the page in Chromium
	$(TEST_PYTHON) -m pytest tests/page $(PYTEST_OPTIONS)

# pytest ends with status 5 when its options select none of these.
test-numpy2: test-env $(NUMPY2)/installed ## Run the unit tests of what computes, on NumPy 2
	PYTHONPATH="$(CURDIR)/$(NUMPY2)" $(TEST_PYTHON) -c 'import numpy; assert numpy.__version__ >= "2", numpy'
	PYTHONPATH="$(CURDIR)/$(NUMPY2)" $(TEST_PYTHON) -m pytest $(NUMPY2_TESTS) $(PYTEST_OPTIONS) || test $$? -eq 5

test-triton: test-env node-client ## Run the tests that start the real Triton
	$(TEST_PYTHON) -m pytest tests/triton $(PYTEST_OPTIONS)

test-gpu: test-env ## Run the tests that need an NVIDIA GPU; writes build/gpu-report.json
	@nvidia-smi -L 2>/dev/null | grep -q GPU || \
		{ echo "make test-gpu needs an NVIDIA GPU and nvidia-smi finds none" >&2; exit 1; }
ifeq ($(TEST_PYTHON),$(TEST_ENV)/bin/python)
	@$(TEST_PYTHON) $(PIP_INSTALL) --editable '.[tensorrt]'
endif
	$(TEST_PYTHON) -m pytest tests/gpu --gpu-report=build/gpu-report.json $(PYTEST_OPTIONS)

check: test-env ## Check format, lint and types and run the unit tests
	$(TEST_PYTHON) -m ruff format --check .
	$(TEST_PYTHON) -m ruff check .
	$(TEST_PYTHON) -m mypy $(PACKAGES)
	$(TEST_PYTHON) -m pytest tests/unit $(PYTEST_OPTIONS)

fix: test-env ## Format the code and fix what ruff can fix
	$(TEST_PYTHON) -m ruff format .
	$(TEST_PYTHON) -m ruff check --fix .

# On a GPU: make bench TEST_PYTHON=python3 BENCH_OPTIONS="--engine tensorrt --precision bf16"
bench: test-env ## Measure tokens per second and latencies; BENCH_OPTIONS=--quick tries it out
	@$(TEST_PYTHON) $(PIP_INSTALL) --requirement benchmarks/requirements.txt
	$(TEST_PYTHON) -m benchmarks.run $(BENCH_OPTIONS)

# The first time it makes an environment per peer and compiles llama.cpp.
bench-peers: test-env ## Measure against vLLM, llama.cpp and others; BENCH_OPTIONS=--quick tries it out
	@$(TEST_PYTHON) $(PIP_INSTALL) --requirement benchmarks/requirements.txt
	$(TEST_PYTHON) -m benchmarks.peers.run $(BENCH_OPTIONS)

clean: ## Remove the environments and caches; built models stay
	rm -rf $(SERVE_ENV) $(TEST_ENV) build dist tests/node/node_modules .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(PACKAGES) tests default_model examples benchmarks model_repository \
		-name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is as old as its `installed` file, so that pip runs only when pyproject.toml changed.
$(SERVE_ENV)/installed: pyproject.toml
	@$(call create_environment,$(SERVE_ENV))
	@echo "Installing into $(SERVE_ENV): about 600 MB, once"
	@$(SERVE_ENV)/bin/python $(PIP_INSTALL) --editable '.[triton]'
	@touch $@

# Dependency groups need a newer pip than Python brings. torch is pinned in pyproject.toml.
$(TEST_ENV)/installed: pyproject.toml
	@$(call create_environment,$(TEST_ENV))
	@echo "Installing into $(TEST_ENV): PyTorch included, about 2 GB, once"
	@$(TEST_ENV)/bin/python $(PIP_INSTALL) 'pip>=25.1'
	@$(TEST_ENV)/bin/python $(PIP_INSTALL) --editable '.[triton,verify,tensorrt-rtx]' --group dev
	@touch $@

$(NUMPY2)/installed: $(TEST_ENV)/installed
	@rm -rf $(NUMPY2)
	@$(TEST_PYTHON) $(PIP_INSTALL) --no-deps --target $(NUMPY2) numpy==2.4.6
	@touch $@

# Another TEST_PYTHON brings its own packages.
ifeq ($(TEST_PYTHON),$(TEST_ENV)/bin/python)
test-env: $(TEST_ENV)/installed
else
test-env:
endif

# Without one the page's tests are skipped, and say so.
chromium: test-env
	-@$(TEST_PYTHON) tests/page/chromium.py

# Without it the tests of OpenAI's Node.js client are skipped, and say so.
node-client: test-env
	-@$(TEST_PYTHON) tests/node/install.py

# Make environment $(1), if it is not there, with the first Python that can run the project.
define create_environment
test -x $(1)/bin/python && exit 0; \
reasons=; chosen=; \
for python in $(or $(PYTHON),python3.11 python3.12 python3); do \
	command -v "$$python" >/dev/null || continue; \
	if reason=$$("$$python" triton_vlm/host_check.py 2>&1); then chosen=$$python; break; fi; \
	reasons="$$reasons$$reason\n"; \
done; \
if test -z "$$chosen"; then \
	printf "%b" "$${reasons:-Python 3.11 or 3.12 is needed and none was found: install one\\n}" >&2; exit 1; \
fi; \
"$$chosen" -m venv $(1)
endef
