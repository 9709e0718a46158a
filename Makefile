# Two commands for a newcomer: `make report` and `make test`. PYTHON names another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: report test test-scale test-install fuzz mutate check audit bench reproduce clean

report: .venv/installed
	$(RUN) mlflow run . --env-manager local -P images=100
	@echo "The report is $(CURDIR)/report/index.html; all runs: $(BIN)/mlflow ui"

test: .venv/tested
	$(BIN)/pytest -n 2 --dist worksteal

# PostgreSQL, Ray, torchrun, notebooks, every entry point: minutes more.
test-scale: .venv/tested
	$(BIN)/pytest -m scale

# A registered version in an environment that pip makes of its requirements, torch among them.
test-install: .venv/tested
	$(BIN)/pytest -m install

# The property tests of `make test` with ten thousand random cases each instead of three hundred fixed ones.
fuzz: .venv/tested
	$(BIN)/pytest --hypothesis-profile fuzz tests/config/test_fuzz_config.py tests/registry/test_fuzz_pyfunc.py

# Small faults, planted one by one into what the numbers rest on: tests should find each. Hours for all; MUTANTS names some, as
# "elbolab.models.objectives.*".
mutate: .venv/tested
	$(BIN)/pip install --quiet --constraint constraints.txt "mutmut>=3.8,<4"
	OMP_NUM_THREADS=1 $(RUN) mutmut run $(MUTANTS)
	$(BIN)/mutmut results

check: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Known vulnerabilities of the pinned packages; fails too where the database of them cannot be asked.
audit: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt pip-audit
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

# elbolab's speed beside its peers' and the machine's; forty minutes on two cores.
bench: .venv/installed
	$(BIN)/python benchmarks/bench.py

# The coursework protocol on 20,000 images of MNIST, whose files are looked for in $$ELBOLAB_DATA.
reproduce: .venv/installed
	$(BIN)/elbolab main --dataset mnist --train-size 20000 --out report-mnist

# The versions that were tested.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "elbolab needs Python 3.11 or newer; set PYTHON")'
	@echo "Installing into .venv: torch is large, this takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/mlflow db upgrade "sqlite:///mlflow.db"
	touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf .venv benchmarks/.venv report
