# Everything README names. A fresh clone needs python3 (3.11 or newer), a C++ compiler and pip; the rest goes into .venv.
#   PYTHON=python3.12   the interpreter that .venv is made with
#   WERROR=ON           compiler warnings are errors (CI does so)
#   CUDA=ON             the CUDA kernels, or an error; AUTO: with them if there is an nvcc; OFF: without them (the
#                       default of demo and bench, which run on the CPU: compiling the kernels takes minutes)
#   CMAKE_ARGS=...      more arguments for CMake; DEBUG=1 for an unoptimised build
PYTHON ?= python3
WERROR ?= OFF
CUDA ?= $(if $(filter demo bench,$(MAKECMDGOALS)),OFF,AUTO)
VENV := .venv
BIN := $(VENV)/bin
RUNS := runs/demo
DEMO_SECONDS ?= 150

NATIVE := $(shell find $(wildcard csrc tests/native) -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
BUILD_FILES := pyproject.toml setup.py CMakeLists.txt $(wildcard cmake/*.cmake csrc/*/*.cmake) $(NATIVE)

# The constraints hold for pip's isolated build environments too; newer releases of pip read the second name.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export CMAKE_ARGS := $(strip $(CMAKE_ARGS) $(if $(filter ON,$(WERROR)),-DJKOFLOW_WERROR=ON))
export JKOFLOW_CUDA := $(CUDA)

JOBS ?= $(shell nproc)
, := ,
# $(call native,FOLDER,ARGUMENTS): builds the programs of tests/native
native = PATH="$(CURDIR)/$(BIN):$$PATH" && cmake --log-level=WARNING -S . -B $(1) -G Ninja $(CMAKE_ARGS) \
	  -DJKOFLOW_PYTHON=OFF -DJKOFLOW_NATIVE_TESTS=ON $(2) && cmake --build $(1) --parallel $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help demo test nvcc soak sanitize parse portable instructions lint format bench site links package wheels audit clean
.DELETE_ON_ERROR:

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/installed-cli-$(CUDA)  ## train on the gas-turbine data and on a 2-D density, write a report of each (5 minutes)
	rm -rf $(RUNS)
	$(BIN)/jkoflow demo --out $(RUNS) --seconds $(DEMO_SECONDS)

# Files of tests side by side, each process with one thread: teams of threads would take the processors from each other.
# Tests of several threads ask for them. `PYTEST_ARGS="-n 0"` runs all in one process.
pytest = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
test: $(VENV)/installed-test-$(CUDA)  ## build and run the tests
	$(pytest) $(PYTEST_ARGS)

# The extension under AddressSanitizer stands in a copy of the package that links to everything else; Python itself is
# built without the sanitizer, so its runtime is loaded before it (and that of C++, whose exceptions it intercepts).
# ThreadSanitizer needs one instruction set: barriers and shares of the work are the same for all. AddressSanitizer gets
# those that this machine can run.
MEMORY := build/sanitize-memory
MEMORY_ISAS := $(if $(shell grep -m1 -w avx2 /proc/cpuinfo 2>/dev/null),avx2)$(if $(shell grep -m1 -w avx512vl /proc/cpuinfo 2>/dev/null),;avx512)
sanitize: $(VENV)/installed-test-$(CUDA)  ## the C++ core and the extension under sanitizers of addresses, undefined behaviour and threads
	$(call native,$(MEMORY),-DJKOFLOW_SANITIZE=address$(,)undefined '-DJKOFLOW_WIDE_ISAS=$(MEMORY_ISAS)' \
	  -DJKOFLOW_PYTHON=ON -DJKOFLOW_CUDA=OFF -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python)
	$(call native,build/sanitize-threads,-DJKOFLOW_SANITIZE=thread -DJKOFLOW_WIDE_ISAS=)
	$(BIN)/ctest --test-dir $(MEMORY) --output-on-failure --parallel $(JOBS)
	$(BIN)/ctest --test-dir build/sanitize-threads --output-on-failure --parallel $(JOBS)
	rm -rf $(MEMORY)/site && mkdir -p $(MEMORY)/site/jkoflow
	ln -s $(CURDIR)/jkoflow/* $(MEMORY)/site/jkoflow
	ln -sf $(CURDIR)/$(MEMORY)/_C.*.so $(MEMORY)/site/jkoflow
	PYTHONPATH=$(MEMORY)/site OMP_WAIT_POLICY=passive ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(ldd $(MEMORY)/_C.*.so | awk '/libasan|libstdc/ {print $$3}' | xargs)" \
	  $(BIN)/pytest -p no:cacheprovider tests/test_memory.py tests/test_memory_rows.py tests/test_memory_stages.py

# Templates are instantiated, too; only code generation is left out, which takes minutes.
parse: $(VENV)/created  ## let the compiler read the CPU kernels of all x86-64 instruction sets, warnings as errors (10 seconds)
	PATH="$(CURDIR)/$(BIN):$$PATH" && cmake --log-level=WARNING -S . -B build/parsed -G Ninja -DCMAKE_BUILD_TYPE=Parse \
	  -DCMAKE_CXX_FLAGS_PARSE=-fsyntax-only -DJKOFLOW_PYTHON=OFF -DJKOFLOW_CUDA=OFF -DJKOFLOW_WERROR=ON \
	  '-DJKOFLOW_WIDE_ISAS=avx2;avx512;amx' && cmake --build build/parsed --target jkoflow_cpu_avx512 jkoflow_cpu_amx --parallel $(JOBS)

nvcc: $(VENV)/created  ## compile the smallest CUDA kernel of every kind, without linking anything (4 minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" && cmake --log-level=WARNING -S . -B build/nvcc -G Ninja $(CMAKE_ARGS) \
	  -DJKOFLOW_PYTHON=OFF -DJKOFLOW_CUDA=ON && cmake --build build/nvcc --target jkoflow_cuda_smallest --parallel $(JOBS)

# The short mode of each is in `make test`; docs/trust.md has the promises and the figures of the last long run.
SOAK := damaged_models read_formats random_cases any_setting resume faulty_disk interrupted_runs interrupted_calls \
  many_at_once leaks invariants guard_under_attack cycles
soak: $(VENV)/installed-test-$(CUDA)  ## the tests of trust in their long mode: faults, kills, fuzzing, leaks, cycles (hours)
	JKOFLOW_SOAK=long $(pytest) $(SOAK:%=tests/test_%.py) --durations=0 $(PYTEST_ARGS)

# aarch64 stands for every processor without kernels of its own. Warnings are errors here: they are what differs most.
PORTABLE_TOOLS := clang++ aarch64-linux-gnu-g++ qemu-aarch64
portable: $(VENV)/created  ## the C++ core with Clang, and on aarch64 in an emulator (Debian's cross compiler and qemu)
	@for tool in $(PORTABLE_TOOLS); do command -v $$tool >/dev/null || { echo "make portable needs $$tool:" \
	  "apt-get install clang libomp-dev g++-aarch64-linux-gnu qemu-user (Debian, Ubuntu)"; exit 1; }; done
	$(call native,build/portable-clang,-DCMAKE_CXX_COMPILER=clang++ -DJKOFLOW_WERROR=ON)
	$(call native,build/portable-aarch64,-DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake -DJKOFLOW_WERROR=ON)
	$(BIN)/ctest --test-dir build/portable-clang --output-on-failure --parallel $(JOBS)
	$(BIN)/ctest --test-dir build/portable-aarch64 --output-on-failure --parallel $(JOBS)

instructions: $(VENV)/created  ## count the CPU kernels' instructions and compare them with the recorded ones (valgrind)
	$(call native,build/instructions,-DJKOFLOW_WIDE_ISAS=avx2)
	$(BIN)/python benchmarks/instructions.py build/instructions/tests/native/count_instructions $(INSTRUCTIONS_ARGS)

lint: $(VENV)/installed-lint-$(CUDA) $(VENV)/installed-test-$(CUDA) $(VENV)/installed-docs-$(CUDA)  ## ruff, pyright, clang-format: report, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(if $(NATIVE),$(BIN)/clang-format --dry-run --Werror $(NATIVE))

format: $(VENV)/installed-lint-$(CUDA)  ## let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(NATIVE),$(BIN)/clang-format -i $(NATIVE))

bench: $(VENV)/installed-bench-$(CUDA)  ## measure against other libraries and this machine's matrix product (6 minutes)
	$(BIN)/jkoflow bench --out runs/bench $(BENCH_ARGS)

# Notebooks call jkoflow and torchrun by their names. One thread each: pages are read side by side.
sphinx = PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --jobs $(JOBS) --quiet
site: $(VENV)/installed-docs-$(CUDA)  ## build the documentation into build/site, its notebooks run, warnings are errors (3 minutes)
	$(sphinx) --nitpicky --fail-on-warning --keep-going --fresh-env docs build/site
	@printf 'To open in a browser: %s\n' $(CURDIR)/build/site/index.html

links: $(VENV)/installed-docs-$(CUDA)  ## list the documentation's external links, and which of them are broken (needs the network)
	$(sphinx) --builder linkcheck --define nb_execution_mode=off docs build/links
	cat build/links/output.txt

package: $(VENV)/created  ## build source distribution and, from it, a wheel the way a user's pip does: isolated, without torch
	rm -rf build/wheel
	$(BIN)/python -c 'from setuptools.build_meta import build_sdist; build_sdist("build/wheel")' >/dev/null
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel build/wheel/jkoflow-*.tar.gz
	@unzip_list="$$($(BIN)/python -m zipfile -l build/wheel/jkoflow-*.whl)"; \
	for file in 'jkoflow/_C\.' 'jkoflow/py\.typed' 'jkoflow/data/gasturbine\.npz' 'jkoflow/experiments/rose\.toml'; do \
	  echo "$$unzip_list" | grep -q "$$file" || { echo "the wheel lacks $$file"; exit 1; }; \
	done; ls -l build/wheel

wheels:  ## wheels to publish, into dist: built, repaired by auditwheel, tried where no compiler is (docs/releasing.md)
	scripts/wheels.sh dist

audit:  ## ask the Python Packaging Advisory Database about every pin (needs the network)
	$(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet pip-audit
	$(PYTHON) scripts/pins.py >build/audit/pins.txt
	build/audit/bin/pip-audit --disable-pip --require-hashes --requirement build/audit/pins.txt

clean:  ## remove the virtual environment, builds, caches and demo runs
	rm -rf $(VENV) build dist $(RUNS) runs/bench jkoflow/_C*.so *.egg-info .pytest_cache .ruff_cache .hypothesis

# Installed editable and without isolation, so that a change of csrc recompiles only what it touches. The extension is the
# one that was built last: what was installed with another CUDA is installed no more.
$(VENV)/installed-%-$(CUDA): $(VENV)/created $(BUILD_FILES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --quiet --no-build-isolation --editable '.[$*]'
	@rm -f $(filter-out %-$(CUDA),$(wildcard $(VENV)/installed-*))
	@touch $@

$(VENV)/created: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jkoflow needs Python 3.11 or newer, got " + sys.version)'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet setuptools cmake ninja pybind11
	@touch $@
