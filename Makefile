# make demo: set up and run the whole chain on sample footage.   make test: set up and pass the tests.
ifneq ($(words $(CURDIR)),1)
$(error "$(CURDIR)" has a space in it, and PyTorch cannot compile operators below such a path: clone to another place)
endif
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
CACHE  := .cache
WORKDIR ?= runs/demo
export OMP_NUM_THREADS ?= 1
export SVDFLOW_TORCH_EXTENSIONS := $(CURDIR)/$(CACHE)/torch_extensions
export DO_NOT_TRACK := 1
SOURCES := $(shell find components pipelines -name '*.py' -newer $(VENV)/.package 2>/dev/null | head -1)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench doctor compile images lock clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(VENV)/.dependencies: requirements.lock
	@bash infra/setup/system_libraries.sh $(PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25' 'setuptools>=77,<82' wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -E '^torch==' requirements.lock)
	grep -vE '^torch==' requirements.lock > $(VENV)/rest.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(VENV)/rest.lock
	touch $@

# An editable install links the files that there are: new ones need a new install, which takes two seconds. Five folders
# hold no Python but data, for which setuptools warns in a hundred lines.
$(VENV)/.package: $(VENV)/.dependencies pyproject.toml $(SOURCES)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . --config-settings editable_mode=strict
	touch $@

$(CACHE)/media/.complete: $(VENV)/.package components/ingest/samples.py
	$(BIN)/python -m svdflow.ingest.samples $(CACHE)/media
	touch $@

$(CACHE)/torch_extensions/.built: $(VENV)/.package
	$(BIN)/python -m svdflow.training.train.build_ops
	mkdir -p $(@D) && touch $@

setup: $(VENV)/.package $(CACHE)/media/.complete $(CACHE)/torch_extensions/.built ## install everything: environment, sample footage, compiled ops

demo: setup ## run the pipeline svd on sample footage in runs/demo and write runs/demo/report.html
	$(BIN)/svdflow run svd --profile local --workdir $(WORKDIR) --source $(CACHE)/media

test: setup ## pass the tests
	$(BIN)/python -m pytest tests/unit tests/integration -n auto --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest tests/e2e

lint: setup ## ruff, mypy, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy components pipelines
	$(BIN)/mypy --scripts-are-modules containers/build.py containers/locks.py containers/sbom.py containers/self_check.py
	$(BIN)/hadolint containers/*/Dockerfile

bench: setup ## run the benchmarks
	$(BIN)/python -m pytest tests/benchmarks -s

doctor: setup ## say what this machine has and lacks
	$(BIN)/svdflow doctor

compile: setup ## compile the pipelines to pipelines/compiled
	$(BIN)/svdflow compile

# Its own variables are in containers/README.md; it needs no environment.
images: ## build the images with docker, podman or buildah (IMAGES, BASE_IMAGE, PUSH)
	@$(PYTHON) containers/build.py

lock: ## write requirements.lock from the environment as it is, and the images' parts of it
	$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(svdflow|pip|setuptools|wheel)\b' | sed -E 's/^(torch==[0-9.]+)\+cpu/\1/' > requirements.lock
	$(BIN)/python containers/locks.py

clean: ## remove what was made here, the environment included
	rm -rf $(VENV) $(CACHE) runs build *.egg-info
