# make demo   the whole road on a small real default: 18 minutes of processor time
# make test   linters and tests; no network beyond the package registries, no GPU
# make docs   the site, into docs/_build; no network once it is installed
#
# Both make .venv first, if it is missing. PYTHON chooses the interpreter, PIP_FLAGS
# goes to every pip call (an index of your own, say).

PYTHON ?= python3
PIP_FLAGS ?=
TORCH ?= torch==2.13.0
TORCHAUDIO ?= torchaudio==2.11.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q $(PIP_FLAGS)
RECIPE := recipes/SpeechDomains/ASR/whisper

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test docs lint check install clean

demo: install
	cd $(RECIPE) && $(CURDIR)/$(BIN)/python train.py hparams/demo.yaml

test: lint check

docs: install
	$(BIN)/python -m sphinx -W --keep-going docs docs/_build
	@echo "The site: $(CURDIR)/docs/_build/index.html"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict .
	$(BIN)/codespell
	$(BIN)/mypy

check: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile \
	  --no-loadscope-reorder --durations=15

install: $(VENV)/.installed

# torch first, and as a constraint on every later call: nothing may replace the build
# that was chosen. torchaudio's compiled extension is linked against CUDA; on a CPU torch
# it does not load, and without it torchaudio falls back to what SpeechBrain needs.
$(VENV)/.installed: setup.py Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)' numpy
	echo '$(TORCH)' > $(VENV)/constraints.txt
	$(PIP) --no-deps '$(TORCHAUDIO)'
	$(BIN)/python -c "import importlib.util, pathlib, torch; \
	  spec = importlib.util.find_spec('torchaudio'); \
	  folder = pathlib.Path(spec.submodule_search_locations[0]) / 'lib'; \
	  [file.unlink() for file in folder.glob('*.so') if torch.version.cuda is None]"
	$(PIP) -c $(VENV)/constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info $(RECIPE)/results docs/_build docs/reference docs/recipes
