VENV := .venv
BIN := $(VENV)/bin
export BENTOML_PORT ?= 3000
MODELS ?= lenet5
comma := ,
OVER_HTTP := $(addprefix tests/service/test_,server.py several_images.py hostile.py lifecycle.py upgrade.py engines.py fuzz.py access.py) tests/page/test_page.py

.PHONY: serve test test-all test-fronts test-gpu check report bento architectures protocol peers lock audit sbom clean

serve: $(VENV)/training.installed images/mnist5k ## install, train and publish lenet5 if none is, and serve on port $BENTOML_PORT
	@$(BIN)/python -m service.address
	@if ! $(BIN)/python -m engines list | grep -q '^lenet5:mnist5k-'; then \
		echo "No lenet5 is published yet: training it on 4,000 real digits, in about half a minute." && \
		$(BIN)/python -m training lenet5 --data mnist5k --resume && \
		$(BIN)/python -m training publish checkpoints/lenet5-mnist5k; \
	fi
	@$(BIN)/python -m service.address --ready & exec $(BIN)/bentoml serve

report: $(VENV)/training.installed images/mnist5k ## accuracy against compute, measured, of MODELS and a server that runs
	$(BIN)/python -m loadtest sweep --host http://localhost:$(BENTOML_PORT) --models $(MODELS)
	$(BIN)/python -m loadtest report

bento: $(VENV)/training.installed ## pack the service with the published MODELS
	$(BIN)/python -m service.pack $(subst $(comma), ,$(MODELS))

test: check ## install, lint, check types, test
	$(BIN)/pytest -n auto --dist loadfile -m "not slow and not gpu"

test-all: check ## the same with the slow tests (`pytest -m slow --collect-only -q` lists them): more networks, the packed Bento, the peers, two processes
	$(BIN)/pytest -n auto --dist loadfile -m "not gpu"

test-fronts: check ## the tests of a real server with two fronts, and with one and with two device processes
	CONVSERVE_FRONTS=2 $(BIN)/pytest -n auto --dist loadfile -m "not slow and not gpu" $(OVER_HTTP)
	CONVSERVE_FRONTS=2 CONVSERVE_DEVICES=2 $(BIN)/pytest -n auto --dist loadfile -m "not slow and not gpu" $(OVER_HTTP)

test-gpu: check ## the tests that need an NVIDIA GPU, and no others; says at its end what ran, what could not, and why
	$(BIN)/pytest -m gpu

check: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

architectures: $(VENV)/training.installed ## write service/architectures.json and service/layers.jsonl.gz anew from models/
	$(BIN)/python -m models --json --layers | $(BIN)/python -m service.architectures

protocol: $(VENV)/dev.installed ## write service/inference_protocol/inference.binpb anew from inference.proto
	$(BIN)/python -m grpc_tools.protoc -I service/inference_protocol \
		--descriptor_set_out=service/inference_protocol/inference.binpb inference.proto

peers: $(VENV)/peers/ray_serve.installed $(VENV)/peers/mlserver.installed ## install Ray Serve, MLServer and Triton for `python -m loadtest peers`, those that cannot share packages in environments of their own
	$(BIN)/pip install --disable-pip-version-check --no-deps nvidia-pytriton

LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --generate-hashes --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --custom-compile-command 'make lock' --extra s3 --extra gcs
lock: $(VENV)/dev.installed ## write the locks with hashes of the container images, deploy/container/requirements*.txt
	$(LOCK) --output-file deploy/container/requirements.txt
	$(LOCK) --extra tensorrt --extra gpu-jpeg --output-file deploy/container/requirements-cuda.txt

audit: $(VENV)/dev.installed ## look for known vulnerabilities of the packages in the container images
	for lock in requirements requirements-cuda; do \
		$(BIN)/uv tool run pip-audit==2.10.1 --strict --disable-pip --require-hashes \
			--requirement deploy/container/$$lock.txt || exit 1; \
	done

sbom: $(VENV)/dev.installed ## list the packages in the container images as CycloneDX, results/requirements*.cdx.json
	mkdir -p results
	for lock in requirements requirements-cuda; do \
		$(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py requirements deploy/container/$$lock.txt \
			--pyproject pyproject.toml --output-reproducible --output-file results/$$lock.cdx.json || exit 1; \
	done

images/mnist5k: | $(VENV)/training.installed
	$(BIN)/python -m training images mnist5k

clean: ## remove what was installed; checkpoints and published models stay
	rm -rf $(VENV)

$(VENV)/training.installed: pyproject.toml
	@echo "Installing into $(VENV); torch is large, so this takes some minutes."
	python3 -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check '.[training,loadtest]'
	@touch $@

$(VENV)/dev.installed: $(VENV)/training.installed tests/stubs.py
	$(BIN)/pip install --disable-pip-version-check '.[training,loadtest,peers,tensorrt-rtx,gpu-jpeg,s3,ray,dev]'
	$(BIN)/python -m tests.stubs $(VENV)/stubs
	@touch $@

# What a peer shares with convserve has convserve's version.
SHARED := bentoml|numpy|openvino|pillow|psutil|pydantic|pydantic-settings
$(VENV)/peers/%.installed: loadtest/peers/%.txt $(VENV)/dev.installed
	$(BIN)/uv venv --clear --python $(BIN)/python $(VENV)/peers/$*
	$(BIN)/uv pip install --python $(VENV)/peers/$*/bin/python -r $< $$($(BIN)/uv pip freeze --python $(BIN)/python | grep -E '^($(SHARED))==')
	@touch $@
