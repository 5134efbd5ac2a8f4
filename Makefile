# `make train` and `make test` are all the set-up there is: each makes .venv and installs what it
# needs, and is quick once that is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check --constraint constraints.txt

# JAX on the CPU unless told otherwise: make train ACCELERATOR=cuda (or tpu)
ACCELERATOR ?=
EXTRAS_RUN := $(if $(ACCELERATOR),[$(ACCELERATOR)],)
comma := ,
EXTRAS_DEV := [dev$(if $(ACCELERATOR),$(comma)$(ACCELERATOR),)]

# One stamp for each accelerator, so that asking for another one installs it.
RUN := $(VENV)/.run$(ACCELERATOR)
DEV := $(VENV)/.dev$(ACCELERATOR)

.PHONY: train test lint docs bench clean

train: $(RUN)
	$(BIN)/python train.py --config configs/digit_scenes.py $(ARGS)

# A file goes to one worker, which compiles and sets up for it once.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Every benchmark at small shapes, in about a minute; figures to quote come without --quick.
bench: $(RUN)
	$(BIN)/python -m benchmarks.run --quick $(ARGS)

docs: $(DEV)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

clean:
	rm -rf $(VENV)

# A stamp is written only when the installation went through, so a broken one is begun anew.
$(RUN): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --editable '.$(EXTRAS_RUN)'
	touch $@

$(DEV): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --editable '.$(EXTRAS_DEV)'
	touch $@ $(RUN)
