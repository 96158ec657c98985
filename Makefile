PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := $(wildcard proto/jobworker/api/v1/*.proto)
# An image of the contract, of which `buf breaking` lets nothing be taken back.
PROMISED := proto/promised.binpb

.DEFAULT_GOAL := help
.PHONY: help setup demo server client certs proto docs lint format test bench faults lock clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make the virtual environment and install jobworker into it

$(STAMP): pyproject.toml requirements/dev.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Run real commands: limited, streamed, stopped, over mutual TLS on this machine
	@tests/demo.sh $(BIN)

server: setup certs ## Run the agent in the foreground on 127.0.0.1:7443, with its state in .dev/
	@$(BIN)/worker-agent dev --dir .dev --listen 127.0.0.1:7443

client: setup ## Show how to call the client against `make server`
	@echo 'export JOBWORKER_ADDR=127.0.0.1:7443 JOBWORKER_CA=.dev/pki/ca.pem JOBWORKER_CERT=.dev/pki/writer.pem JOBWORKER_KEY=.dev/pki/writer.key'
	@echo '$(BIN)/worker-client run -- ls -l /'

certs: setup ## Make the development certificates in .dev/pki
	@$(BIN)/worker-pki dev .dev/pki

proto: setup ## Generate the Python code of the contract
	PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto --python_out=agent --grpc_python_out=agent \
	  --mypy_out=quiet:agent --mypy_grpc_out=quiet:agent $(PROTOS)

.PHONY: promise
promise: setup ## Have later versions of the contract keep what this one has: at each release
	$(BIN)/buf build proto --exclude-source-info --output $(PROMISED)

lint: setup ## Check style, types, walls between folders, and the contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(BIN):$$PATH" $(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/buf format --diff --exit-code proto
	$(BIN)/buf breaking proto --against $(PROMISED)

docs: setup ## Write the pages of docs/ that are made from the program: commands, configuration, API, errors, metrics
	PYTHONPATH=tests $(BIN)/python -m support.reference

format: setup ## Put the code into its form
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/buf format --write proto

test: setup ## Run everything that needs no VM, on all CPUs; as root the cgroup tests too
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: fuzz
fuzz: setup ## Throw arbitrary input at decoders, validators and parsers, for longer than the tests do: EXAMPLES=20000
	JOBWORKER_EXAMPLES=$(or $(EXAMPLES),20000) $(BIN)/pytest -m hypothesis --timeout 0

.PHONY: faults-calls
faults-calls: setup ## Let each system call of a start, an exit and a stop go wrong in turn; as root, with strace
	JOBWORKER_FAULTS=all $(BIN)/pytest tests/system/faults/test_calls.py --timeout 0

.PHONY: load
load: setup ## Run the tests of load at their full size, in a quarter of an hour: a GiB of output, 10,000 jobs; as root
	JOBWORKER_LOAD_MIB=1024 JOBWORKER_JOBS=10000 JOBWORKER_RELOADS=1000 $(BIN)/pytest --timeout 0 \
	  tests/load tests/system/test_limits_reload.py

bench: setup ## Measure, with peers side by side; writes docs/benchmarks.md
	PYTHONPATH=tests $(BIN)/python -m bench $(BENCH)

faults: setup ## Kill parts of an agent at random, and look for what was lost: N=2000 JOBS=20 STANDING=180 SEED=1
	PYTHONPATH=tests $(BIN)/python -m system.faults --kills $(or $(N),100) --jobs $(or $(JOBS),20) \
		--standing $(or $(STANDING),0) $(if $(SEED),--seed $(SEED))

FLEET := .venv-fleet
COLLECTIONS := build/collections

.PHONY: site sbom
site: .venv-site/.installed ## Build the documentation's site in build/site; a link that leads nowhere is an error
	.venv-site/bin/mkdocs --quiet build --strict

sbom: setup .venv-sbom/.installed ## Say what it is made of, in dist/: a bill of materials (CycloneDX), and licences
	requirements/sbom.sh dist

.venv-%/.installed: requirements/%.lock
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.PHONY: wheelhouse deb setup-fleet collection lint-ansible
wheelhouse: sbom ## Collect what hosts install from, locked by hash, in dist/wheelhouse: PYTHONS="3.11 3.13"
	requirements/wheelhouse.sh dist/wheelhouse

deb: wheelhouse ## Make Debian packages, one for each Python, in dist/
	version=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml); \
	  for archive in dist/wheelhouse/jobworker-$$version-*.tar; do requirements/deb.sh $$archive dist || exit 1; done

setup-fleet: $(FLEET)/.installed ## Make the environment that playbooks are run from

collection: setup-fleet ## Build the Ansible collection into dist/
	$(FLEET)/bin/ansible-galaxy collection build --force --output-path dist ansible

lint-ansible: setup-fleet ## Check the collection, by the profile for production and without exceptions
	@mkdir -p $(COLLECTIONS)/ansible_collections/jobworker
	@ln -sfn $(CURDIR)/ansible $(COLLECTIONS)/ansible_collections/jobworker/jobworker
	cd $(COLLECTIONS)/ansible_collections/jobworker/jobworker && PATH="$(CURDIR)/$(FLEET)/bin:$$PATH" \
	  ANSIBLE_COLLECTIONS_PATH=$(CURDIR)/$(COLLECTIONS) ansible-lint --offline

.PHONY: vms-up vms-test vms-fleet vms-down vms-ssh
vms-up: ## Bring up the virtual machines v1, v2 and v2-next, or some of them: M="v1 v2"
	@vagrant/vms up $(M)

vms-test: setup setup-fleet wheelhouse ## Run the suites in the machines, and look at them from outside: M="v1 v2"
	@vagrant/vms test $(M)

vms-fleet: setup setup-fleet wheelhouse ## Set the machines up by playbooks, and change them, as one fleet: M="v1 v2"
	@vagrant/vms fleet $(M)

vms-down: ## Remove the machines and all that runs for them, or some of them: M="v1"
	@vagrant/vms down $(M)

vms-ssh: ## A shell in one of them: M=v1
	@vagrant/vms ssh $(M)

lock: setup ## Resolve the dependencies anew and lock them by hash
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  pyproject.toml --output-file requirements/install.lock --upgrade
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  pyproject.toml --extra otel --group dev --constraint requirements/install.lock --output-file requirements/dev.lock --upgrade
	for group in fleet bootstrap site sbom; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --group pyproject.toml:$$group --output-file requirements/$$group.lock --upgrade || exit 1; done

clean: ## Remove what was built, the virtual environment and the development agent's directory
	rm -rf $(VENV) $(FLEET) .venv-site .venv-sbom .dev dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
