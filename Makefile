# Everything a newcomer and CI run.  Needs make, a Python 3.10 to 3.13 with venv, and a package index that pip reaches.
#   make demo PYTHON=python3.12        another interpreter
#   make demo TORCH_INDEX=URL          another build of torch (TORCH_SPEC=torch==VERSION for another version)
#   make test ARGS="-k frames"         arguments for what the target runs
ARGS ?=
PYTHON ?=
TORCH_SPEC ?=
TORCH_INDEX ?=
export PYTHON TORCH_SPEC TORCH_INDEX

BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
ENVIRONMENT := python=$$(sh scripts/find_python.sh) && "$$python" scripts/environment.py
.DEFAULT_GOAL := help
.PHONY: help env demo test smoke mutations flat fuzz test-all test-comfyui test-comfyui-long compose-test check lint types contracts style page docs \
	screenshots bench clean clean-env

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 28

env: ## the environment with everything for development, in .venv
	@$(ENVIRONMENT) --dev

demo: ## 8 pictures on two CPU workers and an embedded Redis, in demo-output/
	@$(ENVIRONMENT)
	@$(BIN)/distributed-comfy demo $(ARGS)

test: env ## all tests but those that need a real ComfyUI
	@$(BIN)/python -m pytest -m "not comfyui and not smoke" -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

smoke: env ## every fault on a running job, then a soak under random ones: the table of docs/reliability.md
	@found=$$(sh scripts/find_comfyui.sh || true) && COMFYUI_PATH=$$(echo "$$found" | cut -f1) DC_COMFYUI_PYTHON=$$(echo "$$found" | cut -f2) \
		SMOKE_REPORT=smoke-report.json $(BIN)/python -m pytest tests/smoke tests/comfyui/test_faults_in_comfyui.py -m "smoke or comfyui" $(ARGS)

mutations: env ## takes out each protection of docs/reliability.md in turn, and sees its test fail
	@$(BIN)/python -m tests.smoke.mutations $(ARGS)

test-all: env ## those and the tests with a real ComfyUI, side by side
	@found=$$(sh scripts/find_comfyui.sh) && COMFYUI_PATH=$$(echo "$$found" | cut -f1) DC_COMFYUI_PYTHON=$$(echo "$$found" | cut -f2) \
		$(BIN)/python -m pytest -m "not comfyui_long and not smoke" -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

# The same tests as in `make test`, each with hundreds of times as many inputs; TABLE_RUNS are those of the table of truth.
fuzz: TABLE_RUNS ?= 600
fuzz: env ## hostile inputs and properties for minutes instead of seconds
	@TABLE_RUNS=$(TABLE_RUNS) $(BIN)/python -m pytest tests/hostile tests/property/test_state_machine.py tests/property/test_relay_requests.py \
		tests/property/test_frame_roundtrip.py tests/property/test_local_items.py tests/property/test_graph_cuts.py \
		tests/property/test_upscale_cuts.py --hypothesis-profile=fuzz --timeout 3000 -n auto $(ARGS)

flat: env ## memory of servers and processes over 1 000 jobs
	@FLAT_JOBS=1000 $(BIN)/python -m pytest tests/integration/test_housekeeping.py -k flat --log-cli-level INFO $(ARGS)

test-comfyui: COMFYUI_TESTS := comfyui and not comfyui_long
test-comfyui: ## the tests with a real ComfyUI (COMFYUI_PATH, DC_COMFYUI_PYTHON)
test-comfyui-long: COMFYUI_TESTS := comfyui_long
test-comfyui-long: ## those of them that take minutes each
test-comfyui test-comfyui-long: env
	@found=$$(sh scripts/find_comfyui.sh) && COMFYUI_PATH=$$(echo "$$found" | cut -f1) DC_COMFYUI_PYTHON=$$(echo "$$found" | cut -f2) \
		$(BIN)/python -m pytest -m "$(COMFYUI_TESTS)" $(ARGS)

compose-test: env ## builds the cpu profile of docker-compose.yml and tests it running (Docker, else podman), within 15 minutes
	@$(BIN)/python scripts/compose_test.py $(ARGS)

check: lint types contracts style page ## all that needs no test run; what pre-commit runs

lint: env ## ruff
	@$(BIN)/python -m ruff check $(ARGS)

types: env ## mypy, strict
	@$(BIN)/python -m mypy $(ARGS)

contracts: env ## the import layers
	@$(BIN)/lint-imports --no-cache --no-logo $(ARGS)

style: env ## sizes of files and functions, names of modules
	@$(BIN)/python scripts/check_style.py $(ARGS)

page: env ## the types of the panel's modules (node; TypeScript comes by npx)
	@$(BIN)/python scripts/check_page.py $(ARGS)

docs: env ## docs/errors.md and docs/settings.md, generated from the code; the types of the panel's API for its page
	@$(BIN)/python scripts/write_reference.py
	@$(BIN)/python scripts/write_panel_types.py

screenshots: env ## the pictures of the node pack and the panel for docs/images and the template browser (COMFYUI_PATH, chromium): look at each one
	@found=$$(sh scripts/find_comfyui.sh) && COMFYUI_PATH=$$(echo "$$found" | cut -f1) DC_COMFYUI_PYTHON=$$(echo "$$found" | cut -f2) \
		$(BIN)/python scripts/screenshots.py $(ARGS)

bench: env ## benchmarks: a table and JSON
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## what runs and builds left behind
	rm -rf build dist *.egg-info demo-output output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

clean-env: ## the environment
	rm -rf .venv .venv.lock
