# What there is to do in this tree; `make` alone prints it. Only Go, make and a C
# compiler (for the race detector) must be there: every other tool and every real
# server is installed on first use into a cache outside the tree,
# ~/.cache/isthmus-testenv or $ISTHMUS_TESTENV, by testenv/peers/install.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

INSTALL := go run ./testenv/peers/install
# Programs that exist, of those that there are to be.
PROGRAMS := $(patsubst %,./cmd/%,$(foreach p,meshserver sidecar agent meshctl,$(if $(wildcard cmd/$(p)/*.go),$(p))))
PROTOS = $(sort $(shell find $(wildcard xds ca) -name '*.proto'))

# Settings of the targets, each to be given on the command line.
ONCE ?=
ONLY ?=
ROUNDS ?=
COUNT ?= 20
SOAK ?= Suite|Bridge|Fault|Kill|Crash|Restart|Partition|Survive|Outage
TESTFLAGS ?=

.PHONY: help
help: ## Print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r target text; do
	  printf '  make %-10s %s\n' "$$target" "$$text"
	done

.PHONY: build
build: ## Build the programs into bin/
	@mkdir -p bin
	$(if $(PROGRAMS),go build -o bin/ $(PROGRAMS),echo "no program to build yet")

.PHONY: demo
demo: ## Show a whole mesh on this machine; ONCE=1 ends after the proof
	@$(call exists,testenv/demo)
	exec go run ./testenv/demo $(if $(ONCE),-once)

# --- the inner loop -----------------------------------------------------------

.PHONY: check
check: ## Fast checks: format, vet, lint, unit tests, architecture, generated code
	@for target in format vet unit arch lint generated; do
	  start=$$SECONDS
	  echo "== $$target"
	  $(MAKE) $$target
	  echo "== $$target: $$((SECONDS - start)) s"
	done

.PHONY: format
format: ## Check that gofmt has nothing to say
	@files=$$(find . -name '*.go' -not -path './.*' -not -path './bin/*' -print0 | xargs -0 gofmt -l)
	if [ -n "$$files" ]; then
	  printf 'not formatted; run gofmt -w on:\n%s\n' "$$files" >&2
	  exit 1
	fi

.PHONY: vet
vet: ## Run go vet, with the tests that need real peers
	@go vet -tags integration ./...

.PHONY: lint
lint: ## Run the linters of .golangci.yml
	@dir=$$($(INSTALL) -print golangci-lint)
	"$$dir/golangci-lint" run ./...

.PHONY: unit
unit: compiler ## Run the tests that need no real peers
	@tools/run-tests -race $(TESTFLAGS) $$(go list ./... | grep -v /testenv/arch$$)

.PHONY: arch
arch: ## Check the tree against the house style
	@go test -count=1 ./testenv/arch

.PHONY: compiler
compiler:
	@cc=$$(go env CC)
	if ! command -v $${cc%% *} >/dev/null; then
	  echo "the race detector needs a C compiler ($$cc); on Debian: apt-get install gcc libc6-dev" >&2
	  exit 1
	fi

# --- tests with real peers, load ------------------------------------------------

.PHONY: test
test: compiler peers ## Run every test, with the real ZooKeeper, Consul, Envoy and Java applications
	@tools/run-tests -race -tags integration -timeout 30m $(TESTFLAGS) ./...

.PHONY: soak
soak: compiler peers ## Repeat the tests of faults; COUNT=20 times, those whose names match SOAK
	@tools/run-tests -race -tags integration -timeout 0 -failfast -count=$(COUNT) -run '$(SOAK)' $(TESTFLAGS) ./...

.PHONY: bench
bench: peers build ## Measure against HAProxy, nginx and Envoy; ONLY=name ROUNDS=n for a part
	@$(call exists,testenv/load)
	exec go run ./testenv/load $(if $(ONLY),-only $(ONLY)) $(if $(ROUNDS),-rounds $(ROUNDS))

.PHONY: peers
peers: ## Install the real servers that tests start
	@$(INSTALL)

# --- generated code -------------------------------------------------------------

# Every .proto file under xds/ and ca/ becomes Go code beside it, in one package
# with its go_package: messages in .pb.go, services in .connect.go. Imports are
# relative to the root of the tree. The plugins are pinned as tools in go.mod, the
# compiler in testenv/peers/cache. Files whose .proto is gone are removed.
.PHONY: generate
generate: ## Make the generated code anew
	@find $(wildcard xds ca) -name '*.pb.go' -o -name '*.connect.go' | while read -r file; do
	  base=$${file%.pb.go}; base=$${base%.connect.go}
	  [ -e "$$base.proto" ] || rm -v "$$file"
	done
	if [ -n "$(PROTOS)" ]; then
	  dir=$$($(INSTALL) -print protoc)
	  "$$dir/bin/python" -m grpc_tools.protoc -I . \
	    --plugin=protoc-gen-go=$$(go tool -n protoc-gen-go) \
	    --plugin=protoc-gen-connect-go=$$(go tool -n protoc-gen-connect-go) \
	    --go_out=. --go_opt=paths=source_relative \
	    --connect-go_out=. --connect-go_opt=paths=source_relative,package_suffix= \
	    $(PROTOS)
	fi
	go generate ./...

.PHONY: generated
generated: ## Check that the generated code is current
	@state() { find . -type f -not -path './.git/*' -not -path './bin/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; }
	before=$$(state)
	$(MAKE) generate
	if ! changed=$$(diff <(echo "$$before") <(state)); then
	  echo "generated code was not current; it is now, so commit it:" >&2
	  sed -n 's/^[<>] [0-9a-f]*  //p' <<<"$$changed" | sort -u >&2
	  exit 1
	fi

.PHONY: clean
clean: ## Remove what was built in the tree (the cache outside stays)
	@rm -rf bin out

# exists ends the recipe with a clear word if a folder is not there.
exists = [ -d $(1) ] || { echo "$(1) does not exist in this tree" >&2; exit 1; }
