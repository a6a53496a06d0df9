# make help lists the targets.
GO ?= go
# Bounded, so that a hanging test is seen and not waited for.
TEST_TIMEOUT ?= 10m
E2E_TIMEOUT ?= 30m

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: ## bin/cairn
	$(GO) build -trimpath -o bin/cairn ./cmd/cairn

.PHONY: run
run: ## a server on 127.0.0.1:9000, data in ./data
	$(GO) run ./cmd/cairn server $(ARGS)

.PHONY: test
test: ## the tests: only Go is needed
	$(GO) test -timeout $(TEST_TIMEOUT) ./...

.PHONY: race
race: ## the tests with the race detector
	$(GO) test -race -timeout 20m ./...

.PHONY: long
long: ## longer suites: more power cuts, fuzzing, a restart with many objects
	test/long.sh

.PHONY: soak
soak: ## the random suites with new seeds until MINUTES (30) are over or one fails
	test/soak.sh

.PHONY: fuzz
fuzz: ## every fuzz target for a minute
	STEPS=1000 ROUNDS=1 SECONDS_DRIVE=1 OBJECTS=0 FUZZTIME=60s test/long.sh

.PHONY: scale
scale: ## a store of 10 million objects opened again, rules over a million (some GiB of disk, long)
	$(GO) test -tags scale -count=1 -timeout 120m -v ./test/scale

.PHONY: e2e
e2e: ## the binary with real clients and brokers, kills, lost zones (make tools installs them)
	$(GO) test -tags e2e -count=1 -timeout $(E2E_TIMEOUT) -v ./test/e2e

.PHONY: e2e-cluster
e2e-cluster: ## clusters of processes: zones stopped and cut off, kills, histories
	$(GO) test -tags e2e -count=1 -timeout $(E2E_TIMEOUT) -v -run '^TestCluster' ./test/e2e

.PHONY: e2e-long
e2e-long: ## the same with 100 kills and objects of 5 GiB (30 GiB of free disk)
	CAIRN_E2E_ROUNDS=$${CAIRN_E2E_ROUNDS:-100} $(GO) test -tags 'e2e long' -count=1 -timeout 60m -v ./test/e2e

.PHONY: compose
compose: ## compose.yaml with real containers, zones cut off and stopped (needs Docker)
	$(GO) test -tags compose -count=1 -timeout $(E2E_TIMEOUT) -v ./test/compose

.PHONY: brokers
brokers: ## destinations of events with a real RabbitMQ and PostgreSQL (test/tools.sh brokers installs them)
	$(GO) test -tags brokers -count=1 -timeout $(TEST_TIMEOUT) ./server/target/...

.PHONY: conformance
conformance: ## the public Ceph S3 suite against one process (S3TESTS=a checkout of it)
	test/conformance/run.sh

.PHONY: bench
bench: ## next to MinIO, if MINIO names its binary (docs/benchmarks.md)
	test/bench/bench.sh

.PHONY: lint
lint: ## gofmt, vet, layering
	@test -z "$$(gofmt -l cmd server storage cluster s3api proto test)" || { gofmt -l cmd server storage cluster s3api proto test; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags 'e2e long scale compose brokers' ./...
	$(GO) test -count=1 ./test/layering

.PHONY: fmt
fmt: ## gofmt everything
	gofmt -w cmd server storage cluster s3api test

.PHONY: tools
tools: ## what make race, make e2e and make brokers need (Debian, Ubuntu)
	test/tools.sh
