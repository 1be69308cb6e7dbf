# `make` alone lists the targets; `make check` is what must pass before a change
# lands.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Tools are built once per Go version and pinned version, since a linter refuses
# code newer than the Go it was built with.
go_version := $(shell go env GOVERSION 2>/dev/null)
tools      := .tools/$(go_version)

ifeq ($(go_version),)
ifneq ($(filter-out help setup up,$(MAKECMDGOALS)),)
$(error go is missing: install Go 1.26 or newer and put it on PATH)
endif
endif

LISTEN ?= 127.0.0.1:8080
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo dev)

# For one package. Under the race detector everything is several times slower.
test_timeout := 10m
race_timeout := 20m
# The race detector is for what works at the same time in one process. The other tests run programs, which are built
# without it, or are about the database or the language.
raced        := ./fsm ./fsm/access ./fsm/internal/... ./fsm/live ./fsm/task ./fsm/worker ./outbox/dispatch ./outbox/invoke ./outbox/webhook
# Of the HTTP server, the tests of requests that are under way together.
raced_http   := Batch|Claim|Half|Idle|Overload|Recall|Remembered|Revo|Stall|Stream|Slow|Wait

# goose registers every database it knows; only PostgreSQL's driver is wanted.
goose_tags := no_clickhouse,no_libsql,no_mssql,no_mysql,no_sqlite3,no_vertica,no_ydb

# The test that the migrations need nothing but goose runs this one.
export PAWL_GOOSE := $(CURDIR)/$(tools)/goose

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## install what run and test need: PostgreSQL, a C compiler (for the race detector)
	@sh .ci/setup

.PHONY: build
build: ## build bin/pawl
	go build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/pawl ./cmd/pawl

.PHONY: run
run: build ## run the service with a PostgreSQL of its own in .pawl/ (LISTEN=127.0.0.1:8080, ARGS=…)
	@exec bin/pawl dev --data-dir .pawl --listen $(LISTEN) $(ARGS)

.PHONY: test
test: postgres $(tools)/goose ## run the tests
	go test -timeout $(test_timeout) ./...

.PHONY: race
race: postgres $(tools)/goose ## run the tests of what works at the same time under the race detector, those that are long with less
	@command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || { echo "the race detector needs a C compiler: run 'make setup'" >&2; exit 1; }
	go test -race -short -timeout $(race_timeout) $(raced)
	go test -race -short -timeout $(race_timeout) -run '$(raced_http)' ./httpapi

# VERSIONS="15 18" and PACKAGES=./db choose, ARGS=-all demands every version.
.PHONY: test-matrix
test-matrix: $(tools)/goose ## run the tests on each supported PostgreSQL, fetching those that are not installed
	go run ./internal/matrix -timeout $(test_timeout) -versions '$(VERSIONS)' $(ARGS) $(PACKAGES)

.PHONY: check
check: ## run what CI runs: verify, lint, race
	@for target in verify lint race; do \
	  start=$$(date +%s); \
	  $(MAKE) --no-print-directory $$target || exit 1; \
	  echo "make $$target: $$(($$(date +%s) - start)) s"; \
	done

.PHONY: generate
generate: postgres $(tools)/sqlc $(tools)/oapi-codegen ## regenerate the migration, the queries, the API types, the schema dump and the reference of definitions
	go run ./internal/migration initial
	$(tools)/sqlc generate
	$(tools)/oapi-codegen -config httpapi/api/oapi-codegen.yaml httpapi/openapi.yaml
	$(tools)/oapi-codegen -config httpapi/oapi-codegen.yaml httpapi/openapi.yaml
	go test ./db -run '^TestSchemaDump$$' -count 1 -update
	go test ./fsm/definition -run '^TestReference$$' -count 1 -update

.PHONY: migration
migration: postgres ## after a release: write the next migration from db/schema (NAME=what_changes)
	@test -n '$(NAME)' || { echo 'name it: make migration NAME=what_changes' >&2; exit 1; }
	go run ./internal/migration delta '$(NAME)'

.PHONY: verify
verify: ## fail if what is generated is not what is committed
	@MAKE='$(MAKE)' sh .ci/verify

.PHONY: lint
lint: postgres $(tools)/golangci-lint ## lint the code, its formatting, the API contract and the migrations
	$(tools)/golangci-lint run
	@sh .ci/lint-contract
	@sh .ci/lint-migrations

.PHONY: fmt
fmt: $(tools)/golangci-lint ## format the code
	$(tools)/golangci-lint fmt

.PHONY: bench
bench: build ## measure the service beside pgbench, on a PostgreSQL of its own (ARGS=…)
	@exec bin/pawl bench $(ARGS)

.PHONY: torture
torture: build postgres ## break servers and replicas under load and check that nothing is lost (ARGS=…, --list)
	go run ./internal/torture $(ARGS)

.PHONY: dashboard
dashboard: build postgres ## draw docs/dashboard.svg: pawl under a small load, in a Prometheus, for five minutes (ARGS=…)
	go run ./internal/dashboard $(ARGS)

.PHONY: up
up: ## build and start two replicas, a proxy and PostgreSQL in Docker
	@docker compose version >/dev/null 2>&1 || { echo 'docker compose is missing: install Docker with its compose plugin' >&2; exit 1; }
	VERSION='$(VERSION)' docker compose up --build

.PHONY: test-containers
test-containers: $(tools)/docker-compose ## test the image, the compose file and the container of the tests, in an engine of their own if none runs
	@PAWL_COMPOSE='$(CURDIR)/$(tools)/docker-compose' bash .ci/containers

.PHONY: postgres
postgres:
	@sh .ci/setup --check

# Without cgo the tools need no C compiler and are the same on every machine;
# sqlc then parses with the same PostgreSQL grammar compiled to WebAssembly.
build_tool = CGO_ENABLED=0 go build -C $(1) -o '$(CURDIR)/$@' $(2)

$(tools)/sqlc: tools/go.mod tools/go.sum
	$(call build_tool,tools,github.com/sqlc-dev/sqlc/cmd/sqlc)

$(tools)/oapi-codegen: tools/go.mod tools/go.sum
	$(call build_tool,tools,github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen)

$(tools)/golangci-lint: tools/go.mod tools/go.sum
	$(call build_tool,tools,github.com/golangci/golangci-lint/v2/cmd/golangci-lint)

$(tools)/goose: tools/goose/go.mod tools/goose/go.sum
	$(call build_tool,tools/goose,-tags $(goose_tags) github.com/pressly/goose/v3/cmd/goose)

$(tools)/docker-compose: tools/compose/go.mod tools/compose/go.sum
	$(call build_tool,tools/compose,github.com/docker/compose/v2/cmd)
