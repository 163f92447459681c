# Everything runs in .venv; a stamp per kind of install is made again when what shapes it changes.
PYTHON ?= python3
IN := PATH="$(CURDIR)/.venv/bin:$$PATH"
BUILD := pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
TESTS := folder=$$(mktemp -d) && $(IN) python -m pytest -q --basetemp="$$folder/run"# no run meets what another left
.PHONY: quickstart test test-deep test-gpu lint bench fuzz docs

quickstart: .venv/.run
	$(IN) bash examples/quickstart/run.sh
test: .venv/.dev  # two at once: much of the time of tests over ranks is waiting for messages
	$(TESTS) -n 2 --dist loadfile tests && rm -r "$$folder"
test-deep test-gpu: .venv/.dev
	$(TESTS) -m $(@:test-%=%) tests && rm -r "$$folder"
lint: .venv/.dev
	$(IN) ruff check . && $(IN) mypy megascratch
fuzz:
	mkdir -p build
	$(CXX) -std=c++17 -g -O1 -Wno-psabi -fsanitize=address,undefined -fno-sanitize-recover=all csrc/fuzz.cpp -o build/fuzz
	build/fuzz 10000000
bench: .venv/.run
	$(IN) python benchmarks/run_all.py
docs: .venv/.docs
	$(IN) sphinx-build -q -W --keep-going -b html docs build/docs

.venv/.run: $(BUILD) | .venv
	.venv/bin/pip install -q -c constraints.txt -e .
	touch $@
.venv/.dev .venv/.docs: $(BUILD) | .venv
	.venv/bin/pip install -q -c constraints.txt -e '.[$(@:.venv/.%=%)]'
	touch $@ .venv/.run
.venv:
	$(PYTHON) -m venv .venv
