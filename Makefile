# make demo   install into .venv and run the default recipe on the default model; prints where the report is
# make zoo    build the zoo that is in zoo/ again, in every format, and compare the digests
# make test   install what tests need and run them
# make check  lint, formatting, types, import contracts
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo zoo test check clean

demo: $(VENV)/.demo
	MDCOMPRESS_CACHE=.demo/store $(BIN)/mdcompress run decoder/d4_c50_kd_w8a8 --out .demo/run --zoo .demo/zoo

zoo: $(VENV)/.dev
	$(BIN)/python scripts/make_zoo.py --zoo zoo

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .demo $(VENV)

# torch first, by its own command: only then is the CPU build taken where one is at hand.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.demo
