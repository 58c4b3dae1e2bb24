# Every target works on a machine that has only Python (3.10 or newer) and make: the first one called makes .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-pages test-portable test-hosts fuzz test-matrix test-neurobench test-wheel check bench docs install clean

demo: install
	$(BIN)/sbc demo

test: install
	$(BIN)/python -m pytest --durations=40 --durations-min=3

# Pages in a browser, with what axe says of contrast and keyboard: needs node, and chromium (apt-get install chromium).
PAGES := build/pages
test-pages: install
	npm install --no-audit --no-fund --prefix $(PAGES) puppeteer-core@24 axe-core@4
	NODE_PATH=$(PAGES)/node_modules $(BIN)/python -m pytest -q integration_tests/evaluation/test_pages.py

# Processors differ in the instructions that torch and MKL choose, and so in the last bits: the whole suite as on a processor
# without AVX, as on one with AVX2, and with two threads. Half an hour.
test-portable: install
	ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 $(BIN)/python -m pytest -q
	ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE $(BIN)/python -m pytest -q
	SBC_TEST_THREADS=2 $(BIN)/python -m pytest -q

# Each version lies in a folder of its own before the installed one on the path: torch is not installed again.
MATRIX := torch-pruning==1.5.* torch-pruning==1.6.* brevitas==0.13.*
TP_TESTS := integration_tests/torch_pruning
BREVITAS_TESTS := integration_tests/brevitas

# Brevitas 0.12 calls what newer torch no longer has: an environment of its own (7 GB where torch comes with CUDA).
OLDER := build/matrix/venv-brevitas-0.12
$(OLDER)/.installed: pyproject.toml
	test -x $(OLDER)/bin/python || $(PYTHON) -m venv $(OLDER)
	$(OLDER)/bin/python -m pip install -q --editable '.[onnx,demo]' 'brevitas==0.12.*' 'torch==2.8.*' 'pytest>=8'
	touch $@

# Seeded random networks through everything, and mutated files: N of each kind, hours for N=5000. A failing seed prints how to
# see it again.
N ?= 200
fuzz: install
	$(BIN)/python -m integration_tests.strangers.channels $(N)
	$(BIN)/python -m integration_tests.strangers.compression $(N)
	$(BIN)/python -m integration_tests.strangers.nir_files $(N)
	$(BIN)/python -m integration_tests.strangers.onnx_files $(N)
	$(BIN)/python -m integration_tests.strangers.mutations $(N)
	$(BIN)/python -m integration_tests.strangers.kills $(N)
	$(BIN)/python -m integration_tests.strangers.resumed_kills $(N)

# The hosts' own suites and pipelines, Norse's models, and other simulators that read our NIR files, where pip has them.
test-hosts: install
	-$(BIN)/python -m pip install -q --no-deps --target build/readers snntorch sinabs pbr rockpool
	PYTHONPATH=build/readers $(BIN)/python -m pytest -q -m hosts

test-matrix: install $(OLDER)/.installed
	set -e; for version in $(MATRIX); do \
		folder=build/matrix/$${version%.*}; rm -rf $$folder; \
		$(BIN)/python -m pip install -q --no-deps --target $$folder "$$version"; \
		echo "== $$version"; \
		case $$version in torch-pruning*) tests="$(TP_TESTS)";; *) tests="$(BREVITAS_TESTS)";; esac; \
		PYTHONPATH=$$folder $(BIN)/python -m pytest -q $$tests; \
	done
	@echo "== brevitas==0.12.* with torch 2.8"
	$(OLDER)/bin/python -m pytest -q $(BREVITAS_TESTS)

# Without what its data sets need (tonic, torchaudio, librosa, numba): its metrics are torch and snnTorch.
test-neurobench: install
	rm -rf build/neurobench
	$(BIN)/python -m pip install -q --no-deps --target build/neurobench 'neurobench>=2.3,<3' snntorch
	PYTHONPATH=build/neurobench $(BIN)/python -m pytest -q integration_tests/neurobench \
		integration_tests/docs/test_guides.py -k neurobench

# In an environment of its own, outside of this folder so that nothing is imported from here, with the newest versions or
# with the lowest that pyproject.toml allows: `make test-wheel LOWEST=1 PYTHON=python3.10`. Takes 7 GB while it runs.
test-wheel: install
	rm -rf dist && $(BIN)/python -m build -q .
	$(BIN)/python -m integration_tests.lowest_versions > dist/lowest.txt
	set -e; folder=$$(mktemp -d); trap 'rm -rf '$$folder EXIT; \
		$(PYTHON) -m venv $$folder/venv; \
		$$folder/venv/bin/python -m pip install -q "$$(ls dist/*.whl)[all]" pytest $(if $(LOWEST),-c dist/lowest.txt); \
		cd $$folder && venv/bin/python -m pip list | grep -iE '^(torch|torchvision|numpy|norse|brevitas|onnx|sbc)' && \
		venv/bin/sbc demo --seed 0 && \
		OMP_NUM_THREADS=1 venv/bin/python -m pytest --pyargs sbc_plugin -q -p no:cacheprovider $(if $(LOWEST),,-W error)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m integration_tests.benchmarks.run $(if $(QUICK),--quick) $(CASE)

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

install: $(STAMP)

# One pip call, so that torch and torchvision (a dependency of norse) are resolved to a matching pair.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev,docs,all]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
