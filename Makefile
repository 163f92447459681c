# Everything runs in .venv; a stamp per kind of install is made again when what shapes it changes.
PYTHON ?= python3
IN := PATH="$(CURDIR)/.venv/bin:$$PATH"
BUILD := pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
TESTS := folder=$$(mktemp -d) && $(IN) python -m pytest -q --basetemp="$$folder/run"# no run meets what another left
ROOM ?=
.PHONY: quickstart check format test test-fast test-deep test-gpu bench docs fuzz metrics

quickstart: .venv/.run
	$(IN) bash examples/quickstart/run.sh

# Before each commit: under 30 seconds. `make format` formats the tree.
check: .venv/.dev
	$(IN) ruff format --check --quiet . || { echo "not formatted: make format"; exit 1; }
	$(IN) ruff check --quiet .
	$(IN) mypy megascratch
	$(TESTS) tests/test_house.py && rm -r "$$folder"
format: .venv/.dev
	$(IN) ruff check --quiet --select I --fix .
	$(IN) ruff format --quiet .

# All tests, or those of one room: make test ROOM=pipeline
test: .venv/.dev  # two at once: much of the time of tests over ranks is waiting for messages
	$(TESTS) -n 2 --dist loadfile tests/$(ROOM) && rm -r "$$folder"
test-fast: .venv/.dev  # a test is skipped at the point where it starts a process
	$(TESTS) -n 2 --dist loadfile --no-processes tests/$(ROOM) && rm -r "$$folder"
test-deep test-gpu: .venv/.dev
	$(TESTS) -m $(@:test-%=%) tests/$(ROOM) && rm -r "$$folder"
fuzz:
	mkdir -p build
	$(CXX) -std=c++17 -g -O1 -Wno-psabi -fsanitize=address,undefined -fno-sanitize-recover=all csrc/fuzz.cpp -o build/fuzz
	build/fuzz 10000000

bench: .venv/.run
	$(IN) python benchmarks/run_all.py
metrics:
	$(PYTHON) -m tools.code_metrics megascratch
	$(PYTHON) -m tools.setting_files megascratch
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
