# One machine, Python 3.11, no container engine. `make` alone prints this help.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Whose schemas the manifests are checked against.
KUBERNETES := 1.34
STAMP := $(VENV)/installed

.PHONY: help
help: ## Print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: install
install: $(STAMP) ## Make the virtual environment with everything, once

$(STAMP): pyproject.toml constraints.txt deploy/install.sh
	@PYTHON=$(PYTHON) bash deploy/install.sh $(VENV)
	@touch $@

.PHONY: protos
protos: $(STAMP) ## Generate code and asyncapi.yaml from the protos, in place
	@$(BIN)/buf format -w protos
	@find services/saucer/*/v1 services/buf -name '*_pb2*' -delete
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash protos/generate.sh "$(CURDIR)/services"
	@mv services/asyncapi.yaml protos/asyncapi.yaml

.PHONY: check
check: $(STAMP) ## Formatter, linter, strict types, import boundaries, protos
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/buf format --diff --exit-code protos
	@$(BIN)/buf lint protos
	@$(BIN)/buf breaking protos --against protos/released.binpb
	@$(BIN)/kubernetes-validate --quiet --strict -k $(KUBERNETES) $(filter-out %/kustomization.yaml %/scaling.yaml,$(wildcard deploy/kubernetes/base/*.yaml))
	@$(BIN)/hadolint $(wildcard deploy/Dockerfile.*)
	@echo "check: all clean"

.PHONY: test
test: check ## Every check, and every test but those of `make soak`, on real servers (25 minutes on two cores)
	@$(BIN)/pytest --numprocesses 2 $(TESTS)

.PHONY: demo
demo: $(STAMP) ## The main job on real parts: images in, detector served, bill paid. DATA=FOLDER takes your own images
	@$(BIN)/saucer demo $(if $(DATA),--data "$(DATA)")

.PHONY: up
up: $(STAMP) ## The whole stack in the foreground, until Ctrl-C
	@$(BIN)/saucer up

.PHONY: bench
bench: $(STAMP) ## Benchmarks as a table; BENCH=platform runs one
	@$(BIN)/python -m tests.bench $(BENCH)

.PHONY: gpu-check
gpu-check: $(STAMP) ## On a machine with a GPU: mixed precision, speed, exact resume, parity of export and serving
	@$(BIN)/python -m tests.gpu

.PHONY: soak
soak: $(STAMP) ## The long forms of the tests
	@$(BIN)/pytest -m soak --timeout 7200 tests

.PHONY: mutants
mutants: $(STAMP) ## Whether the tests of billing notice wrong arithmetic and wrong SQL (a sample of changes)
	@$(BIN)/python -m tests.mutation

.PHONY: compose-demo
compose-demo: ## The demonstration's path against docker compose, which is up
	@docker compose run --rm --no-TTY --entrypoint bash saucer -s <deploy/path.sh

.PHONY: compose-check
compose-check: ## docker-compose.yml on a real Docker Engine with stand-in images; as root, on Debian
	@tests/compose/check.sh

.PHONY: clean
clean: ## Remove what the stack and the tests left; installed environments stay
	@rm -rf .saucer .pytest_cache .mypy_cache .ruff_cache .hypothesis
