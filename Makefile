# The only list of commands; CI runs the same ones.
PYTHON ?= python3
VENV := .venv/bin
LOCK := $(VENV)/uv pip compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11
GPU_LOCK = $(subst 3.11,3.12,$(LOCK)) --python-platform x86_64-manylinux_2_28
export BASE
# What decides about a cluster is typed with the command: an exported variable of that name is somebody else's.
typed = $(if $(filter command line,$(origin $(1))),$($(1)))
TARGET = --stack $(or $(call typed,STACK),dev) --context "$(call typed,CONTEXT)"
AGREED = $(if $(filter 1,$(call typed,YES)),--yes)
WANT_PYTHON = $(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "PYTHON: got %s, want 3.11 or newer; run make PYTHON=python3.11" % sys.version.split()[0])'
# A word every 10 s while packages are installed, until the shell ends, however it ends: dash runs no trap when Ctrl-C ends it.
STILL = import os, sys, time; shell = os.getppid(); \
	any(time.sleep(10) or os.getppid() != shell or print("venv: still installing", file=sys.stderr, flush=True) for _ in iter(int, 1))
# The cluster tier, and the others beside it.
WORKERS = $(if $(call typed,TIER),,-n 2 --dist loadscope --no-loadscope-reorder)

.DEFAULT_GOAL := help
.PHONY: help try up down check key cache-password usage logs shell debug scan backup restore status explain preview tools clean-cache test proof lint lock pins wheel release machine

help: ## what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

try: export PYTHONDONTWRITEBYTECODE = 1
try: ## gateway, model server and a small model as plain processes, until Ctrl-C; MODEL=file.gguf, PORT=number. docs/try.md
	@$(WANT_PYTHON)
	@exec $(PYTHON) -m modelfleet try $(if $(call typed,MODEL),--model "$(MODEL)") $(if $(call typed,PORT),--port "$(PORT)")

up: machine .venv/.stamp ## start the embedded cluster, deploy, print a chat answer; CONTEXT=name: your own cluster; RUNTIME=crio; TOOLS=file@sha256:hex: compile nothing
	@$(VENV)/python -m infra.lifecycle up $(TARGET) --nodes $(or $(call typed,NODES),2) $(AGREED) \
		$(if $(call typed,RUNTIME),--runtime "$(call typed,RUNTIME)") \
		--allow-data-loss "$(call typed,ALLOW_DATA_LOSS)" --take "$(call typed,TAKE)" --registry-auth "$(call typed,PULL_AUTH)" \
		--tools "$(call typed,TOOLS)"

# Before anything is fetched.
machine:
	@$(if $(call typed,CONTEXT),,$(if $(wildcard $(VENV)/python),$(VENV)/python,$(WANT_PYTHON) && $(PYTHON)) -m devcluster.host)

down: .venv/.stamp ## remove what make up made, and nothing else; CONTEXT=name FORGET=1: that cluster is gone
	@$(VENV)/python -m infra.lifecycle down $(TARGET) $(AGREED) $(if $(call typed,FORGET),--forget)

check: .venv/.stamp ## try what your cluster does before a stack is there: policies, classes; CONTEXT=name; IMAGE=one with Python
	@$(VENV)/python -m infra.lifecycle check $(TARGET) --registry-auth "$(call typed,PULL_AUTH)" --image "$(call typed,IMAGE)"

key: .venv/.stamp ## make a key of the API server, and print it once; NAME=whose; REVOKE=1: take it back; CONTEXT=name
	@$(VENV)/python -m infra.lifecycle key $(TARGET) --name "$(call typed,NAME)" $(if $(call typed,REVOKE),--revoke)

cache-password: .venv/.stamp ## another password of the cache server; the pods that know it are replaced one by one; CONTEXT=name
	@$(VENV)/python -m infra.lifecycle cache-password $(TARGET)

usage: .venv/.stamp ## say what each key has used, by day (UTC) and model; DAYS=7; CSV=file, or 1: print it; PROMETHEUS=address: another one
	@$(VENV)/python -m infra.lifecycle usage $(TARGET) --days "$(or $(call typed,DAYS),7)" --csv "$(call typed,CSV)" \
		--prometheus "$(call typed,PROMETHEUS)"

logs: .venv/.stamp ## print what pods have written; OF=component or pod; SINCE=10m; FOLLOW=1: until Ctrl-C; CONTEXT=name
	@$(VENV)/python -m infra.lifecycle logs $(TARGET) --of "$(call typed,OF)" --since "$(or $(call typed,SINCE),10m)" \
		$(if $(call typed,FOLLOW),--follow)

shell: .venv/.stamp ## a shell in a pod of a stack that is not for production; OF=component or pod; CONTAINER=name; CONTEXT=name
	@$(VENV)/python -m infra.lifecycle shell $(TARGET) --of "$(call typed,OF)" --container "$(call typed,CONTAINER)"

debug: .venv/.stamp ## a shell in a further container of such a pod, beside one that has none; OF=component or pod; CONTAINER=name; IMAGE=its own
	@$(VENV)/python -m infra.lifecycle debug $(TARGET) --of "$(call typed,OF)" --container "$(call typed,CONTAINER)" \
		--image "$(call typed,IMAGE)"

scan: .venv/.stamp ## look for vulnerabilities in the images that run, and fail on a critical one; CONTEXT=name
	@$(VENV)/python -m infra.lifecycle scan $(TARGET)

backup: .venv/.stamp ## keep state, keys, catalog and usage in an encrypted restic repository; TO=where; CONTEXT=name. docs/backup.md
	@$(VENV)/python -m infra.lifecycle backup $(TARGET) --to "$(call typed,TO)" --prometheus "$(call typed,PROMETHEUS)"

restore: .venv/.stamp ## put them back where there is no such stack; FROM=where; SNAPSHOT=latest; CONTEXT=name; then make up
	@$(VENV)/python -m infra.lifecycle restore $(TARGET) --from "$(call typed,FROM)" --snapshot "$(or $(call typed,SNAPSHOT),latest)"

status: .venv/.stamp ## say what runs, and where to reach it
	@$(VENV)/python -m infra.lifecycle status $(TARGET)

explain: .venv/.stamp ## say why it is not ready, one sentence a cause
	@$(VENV)/python -m infra.lifecycle explain $(TARGET)

preview: .venv/.stamp ## check dev and prod without a cluster, say what changes since BASE=ref; CONTEXT=name: what make up would change there; TOOLS=
	@$(VENV)/python -m infra.lifecycle preview $(TARGET) --tools "$(call typed,TOOLS)"

tools: .venv/.stamp ## write an archive of what make up compiles into build/, and print the line that uses it elsewhere
	@$(VENV)/python -m devcluster.archive write

clean-cache: .venv/.stamp ## say what the cache holds, ask, and free it; YES=1 answers
	@$(VENV)/python -m infra.lifecycle clean-cache $(AGREED)

test: .venv/.stamp ## run every tier of tests; TIER=unit (component, contract, golden, service, cluster) runs one
	@$(if $(filter unit component contract,$(call typed,TIER)),,$(VENV)/python -m devcluster.packages $(AGREED))
	@$(if $(filter unit component contract service,$(call typed,TIER)),,$(VENV)/python -m devcluster.toolchain >/dev/null)
	@$(VENV)/python -m pytest $(WORKERS) tests/$(call typed,TIER)

proof: .venv/.stamp ## renew the results of stale proofs; NAME=x runs one, CHECK=1 runs none and fails when any is stale
	@$(VENV)/python -m tests.proofs $(call typed,NAME) $(if $(call typed,CHECK),--check)

lint: .venv/.stamp ## style and types
	@$(VENV)/ruff check . && $(VENV)/ruff format --check . && $(VENV)/basedpyright

wheel: .venv/.stamp ## build dist/modelfleet-*.whl: uvx --from dist/modelfleet-*.whl modelfleet try, or with [up] modelfleet up
	@$(VENV)/python -m modelfleet.wheel

release: .venv/.stamp ## collect wheel, tools and images of this commit in dist/, when every proof holds; STACK=whose images. Publishes nothing
	@$(VENV)/python -m tests.proofs --check
	@$(VENV)/python -m infra.preparation.release --stack "$(call typed,STACK)"

lock: .venv/.stamp ## resolve the dependencies again into the committed lock files
	@$(LOCK) pyproject.toml --group pyproject.toml:dev -o requirements.lock
	@for service in api_server model_server metrics_exporter ollama_agent image_verifier modelfleet; do $(LOCK) -c requirements.lock $$service/requirements.in -o $$service/requirements.lock; done
	@$(LOCK) -c requirements.lock pyproject.toml -o modelfleet/up.lock
	@for only in clients envoy; do $(LOCK) tests/service/$$only.in -o tests/service/$$only.lock; done
	@for peer in vllm-router litellm; do $(LOCK) bench/peers/$$peer.in -o bench/peers/$$peer.lock; done
	@$(subst 3.11,3.12,$(LOCK)) tests/proofs/openhands.in -o tests/proofs/openhands.lock
	@$(LOCK) --override tests/proofs/vllm.overrides tests/proofs/vllm.in -o tests/proofs/vllm.lock
	@$(LOCK) -c requirements.lock images/ollama/engine.in -o images/ollama/engine.lock
	@$(LOCK) --no-deps images/cache-server/server.in -o images/cache-server/server.lock
	@$(GPU_LOCK) images/model-server-vllm/engine.in images/python-base/base.in -o images/model-server-vllm/engine.lock
	@$(GPU_LOCK) -c images/model-server-vllm/engine.lock images/python-base/base.in -o images/python-base/base.lock

pins: .venv/.stamp ## write the digests that registries give for base images; MODELS=host/namespace/model:tag prints those of models
	@$(VENV)/python -m images.pins $(call typed,MODELS) $(if $(call typed,MIRROR),--mirror $(call typed,MIRROR))

.venv/.stamp: requirements.lock requirements-bootstrap.lock
	@echo "venv: installing the locked Python packages, about 30 s" >&2
	@$(WANT_PYTHON)
	@test -x $(VENV)/python || $(PYTHON) -m venv .venv
	@$(PYTHON) -c '$(STILL)' & trap "kill $$!" EXIT; \
		$(VENV)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-bootstrap.lock && \
		VIRTUAL_ENV=.venv $(VENV)/uv pip install -q --require-hashes -r requirements.lock
	@touch $@
