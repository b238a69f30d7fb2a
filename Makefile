.PHONY: check test quick

check: ## ruff, mypy and pytest in the current environment
	scripts/check.sh

test: ## the same from a fresh clone: makes .venv first
	./run_tests.sh

quick: ## one prompt a task, end to end
	./run_all.sh --quick
