# Needs make and Python 3.11 or 3.12; everything else comes into .venv.
.DEFAULT_GOAL := help
.PHONY: help up manage demo test conformance chaos mutants prove bench-stall bench-outage bench-rebuild bench-agreement bench-quality bench-stm bench-hit bench-mem0 bench-trace bench-peers bench-warm bench-pictures capacity lint audit fmt clean

PYTHON := .venv/bin/python
INSTALL = for python in $(PYTHON) python3.11 python3.12 python3 python; do \
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' >/dev/null 2>&1; \
		then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "memsvc needs Python 3.11 or 3.12: neither is on the PATH." >&2; exit 1; fi; \
	$$found -m memsvc.embedded.install

help: ## show this
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' Makefile

up: ## install what is missing, start everything, print where it is; Ctrl-C stops it
	@$(INSTALL) up && exec $(PYTHON) -m memsvc.embedded up

manage: ## a command of manage.py beside the running service; make manage ARGS="adopt"
	@test -x $(PYTHON) || { echo "Start the service first: make up" >&2; exit 1; }
	@exec $(PYTHON) -m memsvc.embedded manage $(ARGS)

demo: ## questions cold, warm and after a write, against the running service
	@test -x $(PYTHON) || { echo "Start the service first: make up" >&2; exit 1; }
	@exec $(PYTHON) -m demo

test: ## run all tests on private PostgreSQL and Valkey; make test ARGS="-k warm"
	@$(INSTALL) dev && exec $(PYTHON) -m memsvc.embedded test -- $(ARGS)

mutants: ## remove each guard of the protocol from a copy and see its test fail; make mutants ARGS="floor"
	@$(INSTALL) dev && exec $(PYTHON) -m tests.mutants $(ARGS)

conformance: ## Mem0's own clients against a running service; writes what they say into docs/compatibility.md
	@$(INSTALL) dev
	$(PYTHON) -m tests.clients.environments
	MEMSVC_WRITE_TABLE=1 $(PYTHON) -m memsvc.embedded test -- tests/clients -q -p no:randomly $(ARGS)

chaos: ## the whole service under random faults; CHAOS_RUNS and SEED choose how many and which
	@$(INSTALL) dev && exec $(PYTHON) -m tests.chaos $(ARGS)

prove: ## every mutant, then 200 runs of chaos; ARGS="--seed S --first N" goes on with run N
	@$(INSTALL) dev && $(PYTHON) -m tests.mutants && exec $(PYTHON) -m tests.chaos --runs 200 $(ARGS)

bench-stall: ## cached hits while Mem0 stands still, beside the same hits in quiet
	@$(INSTALL) dev && exec $(PYTHON) -m bench.stall $(ARGS)

bench-outage: ## Mem0's server away for a minute under load: what is answered, what is stored
	@$(INSTALL) dev && exec $(PYTHON) -m bench.outage $(ARGS)

bench-rebuild: ## live traffic beside a rebuild of 5,000 users, and without it
	@$(INSTALL) dev && exec $(PYTHON) -m bench.rebuild $(ARGS)

bench-agreement: ## local ranking beside Mem0's own search, on the shared data
	@$(INSTALL) dev && exec $(PYTHON) -m bench.agreement $(ARGS)

bench-quality: ## every ranking beside Mem0's own search: how well it finds what answers, in English and Vietnamese
	@$(INSTALL) dev && exec $(PYTHON) -m bench.quality $(ARGS)

bench-stm: ## short-term memory: its context, recall of either memory and both, round trips, Vietnamese
	@$(INSTALL) dev && exec $(PYTHON) -m bench.stm $(ARGS)

bench-mem0: ## memsvc beside Mem0 itself over REST: repeated questions, new ones, cold users
	@$(INSTALL) dev && exec $(PYTHON) -m bench.beside $(ARGS)

bench-trace: ## one trace of traffic to Mem0 alone and through memsvc: hits by layer, times, calls, staleness
	@$(INSTALL) dev && exec $(PYTHON) -m bench.trace $(ARGS)

bench-hit: ## a question asked before, beside a Django view that does nothing
	@$(INSTALL) dev && exec $(PYTHON) -m bench.hit $(ARGS)

bench-peers: ## other memory services beside memsvc: questions asked before, and never asked before
	@$(INSTALL) dev && exec $(PYTHON) -m bench.peers $(ARGS)

bench-warm: ## a rebuild of thousands of users, beside a bare script that writes the same; make bench-warm ARGS="--users 100000"
	@$(INSTALL) dev && exec $(PYTHON) -m bench.warm $(ARGS)

bench-pictures: ## draw what bench/results holds into docs/pictures
	@$(INSTALL) dev && exec $(PYTHON) -m bench.pictures

capacity: ## hardware, storage and times for so many users, from what bench-warm measured
	@$(INSTALL) dev && exec $(PYTHON) -m bench.capacity $(ARGS)

lint: ## what CI checks beside the tests
	@$(INSTALL) dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

audit: ## bandit over the code, and known vulnerabilities of every installed package; needs PyPI's advisories
	@$(INSTALL) dev
	$(PYTHON) -m bandit -q -c pyproject.toml -r memsvc memory cachewarm
	@test -x .audit/bin/pip-audit || { $(PYTHON) -m venv .audit && .audit/bin/pip install -q pip-audit==2.10.1; }
	$(PYTHON) .ci/audit.py .audit/bin/pip-audit

fmt: ## format the code
	@$(INSTALL) dev
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean: ## remove what tools leave behind; the environment and the data stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
