.PHONY: setup run test lint doctor

setup: ; @./scripts/setup
run: ; @./scripts/run
test: ; @./scripts/test
lint: ; @./scripts/test --lint
doctor: ; @./.venv/bin/python scripts/doctor
