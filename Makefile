# SPDX-License-Identifier: Apache-2.0

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GO ?= go
# Without tracing, grpc does not link html/template: 4 MB less.
TAGS := grpcnotrace
# -funcalign=16: functions begin at multiples of 16 bytes, as on arm64, instead of 32: 180 KB less.
# -l: no inlining in Kubernetes' modules, whose code is mostly for types that the driver never reads: 600 KB less.
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -gcflags=k8s.io/...=-l -ldflags "-s -w -funcalign=16 -X main.version=$(VERSION)"
# Modules of their own, so that what only tests, releases and the site need is not in the driver's go.mod.
MODULES := release test/sanity test/bench test/kustomize test/site

STARTED := $(shell date +%s)

.DEFAULT_GOAL := help
.PHONY: help build demo test lint unit fuzz fuzz-once audit sanity torture soak bench bench-once scale control-plane manifests image release release-check e2e alerts pages versions conformance gallery examples cluster-up cluster-down cluster-shell cluster-test vm site site-test chromium prerequisites clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

BIN := bin
build: $(BIN)/fsuser-csi $(BIN)/kubectl-fsuser ## Build bin/fsuser-csi, the driver, and bin/kubectl-fsuser, the plugin of kubectl; both static
	@install cmd/kubectl-fsuser/kubectl_complete-fsuser $(BIN)/

.PHONY: $(BIN)/fsuser-csi $(BIN)/kubectl-fsuser
$(BIN)/fsuser-csi $(BIN)/kubectl-fsuser:
	$(BUILD) -o $@ ./cmd/$(@F)

demo: build ## Run the driver on this machine, without a cluster (root)
	@$(GO) run ./test/demo bin/fsuser-csi

test: prerequisites lint control-plane unit fuzz-once sanity bench-once ## Run all tests except those in a cluster, with the race detector (root)
	@echo "all tests passed, in $$((($$(date +%s) - $(STARTED)) / 60)) minutes"

lint: ## Check formatting, run golangci-lint, vet the other modules, and check the workflows of GitHub
	@unformatted=$$(gofmt -l cmd deploy internal pkg release test); test -z "$$unformatted" || { echo "gofmt -w $$unformatted"; exit 1; }
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...
	@for m in $(MODULES); do echo "$(GO) vet $$m"; $(GO) -C $$m vet -tags '$(TAGS) dist' ./... || exit 1; done
	$(GO) run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12 -shellcheck= -pyflakes= .github/workflows/*.yml

# -p 2: several of these packages start an API server each.
# -count=1: some tests build the driver, and Go's cache of results does not depend on the driver's sources.
unit: ## Run the tests of this module, including those with the real kernel and a real API server (root)
	$(GO) test -race -tags $(TAGS) -count=1 -p 2 -timeout 20m ./...
	$(GO) -C test/kustomize test -race -tags $(TAGS) -count=1 ./...
	$(GO) -C release test -tags $(TAGS) -count=1 ./...

# The recipe finds all fuzz targets. A failing input is printed and written to testdata/fuzz beside the target. From then
# on, the target's test runs it.
FUZZTIME ?= 30s
FUZZPROCS ?= 2
FUZZMINIMIZETIME ?= 60s
fuzz: prerequisites ## Run each fuzz target for FUZZTIME, for example 30s, or 100x for a number of times (root)
	@set -e; mkdir -p .cache/fuzz; for p in $$(grep -rl --include='*_test.go' '^func Fuzz' cmd internal pkg | xargs -n 1 dirname | sort -u); do \
		binary=$(CURDIR)/.cache/fuzz/$$(echo $$p | tr / -).test; \
		$(GO) test -c -fuzz . -tags $(TAGS) -o $$binary ./$$p; \
		targets=$$($$binary -test.list '^Fuzz'); test -n "$$targets"; \
		for f in $$targets; do \
			echo "$$p $$f"; \
			(cd $$p && $$binary -test.run '^$$' -test.fuzz "^$$f\$$" -test.fuzztime $(FUZZTIME) -test.fuzzminimizetime $(FUZZMINIMIZETIME) \
				-test.parallel $(FUZZPROCS) -test.fuzzcachedir $(CURDIR)/.cache/fuzz/$$p) || \
				{ find $$p/testdata/fuzz/$$f -newer $$binary -type f -exec tail -v -n +1 {} +; exit 1; }; \
		done; done

# A number of inputs instead of a time, so that no run is cut off.
fuzz-once:
	@$(MAKE) --no-print-directory fuzz FUZZTIME=1000x FUZZMINIMIZETIME=1x

audit: ## Check the modules against go.sum, and the driver against the Go vulnerability database (vuln.go.dev)
	$(GO) mod verify
	@for m in $(MODULES); do $(GO) -C $$m mod verify || exit 1; done
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 -tags $(TAGS) ./cmd/...

sanity: ## Run the CSI test suite against the driver (root)
	$(GO) -C test/sanity test -race -tags $(TAGS) -count=1 -timeout 10m ./...

# The packages with tests that show a promise of docs/reliability.md. FSUSER_TORTURE makes test/torture run all rounds.
SHOWING = $(shell grep -rl --include='*_test.go' 'reliability\.Shown' cmd deploy internal pkg test | xargs -n 1 dirname | sort -u | sed 's,^,./,')
torture: prerequisites control-plane ## Kill, starve and soak the driver for about half an hour, and write docs/reliability.md (root)
	@rm -rf .cache/reliability && mkdir -p .cache/reliability
	FSUSER_TORTURE=1 FSUSER_RELIABILITY=$(CURDIR)/.cache/reliability $(GO) test -race -count=1 -tags $(TAGS) -p 1 -timeout 60m $(SHOWING)
	$(GO) run ./internal/reliability/page -started $(STARTED) .cache/reliability

SOAK ?= 1h
soak: prerequisites control-plane build ## Run the driver for SOAK with the events of a day, 24 times as often, and write docs/soak.md (root)
	FSUSER_SOAK=$(SOAK) FSUSER_TEST_DRIVER=$(CURDIR)/bin/fsuser-csi \
		$(GO) test -count=1 -tags '$(TAGS) soak' -run '^TestDay$$' -timeout 0 -v ./test/torture

bench: prerequisites control-plane ## Measure the driver, and compare it with the design's goals (root)
	cd test/bench && $(GO) run -tags $(TAGS) .

bench-once: control-plane
	cd test/bench && $(GO) run -tags $(TAGS) . -quick
	cd test/bench && $(GO) test -count=1 -tags $(TAGS) ./scale

# FLAGS=-quick: small numbers, to check that all steps work, without writing the page.
scale: build prerequisites control-plane ## Compare what 50 drivers and 50 kubelets cost an API server, and write docs/scale.md (root)
	cd test/bench && $(GO) run -tags $(TAGS) ./scale -driver ../../bin/fsuser-csi -page ../../docs/scale.md $(FLAGS)

control-plane: ## Build kube-apiserver, etcd, helm and promtool from their Go modules, once
	@$(GO) run ./test/cluster/build kube-apiserver etcd helm promtool

manifests: control-plane ## Render deploy/*.yaml, and write the README of the chart, from the chart
	$(GO) run ./deploy/manifests

# The image's name in the manifests.
REPOSITORY ?= localhost/fsuser-csi
IMAGE ?= $(REPOSITORY):$(shell sed -n 's/^appVersion: //p' deploy/chart/Chart.yaml)
image: build ## Pack the driver into bin/fsuser-csi-image.tar, without a container engine
	$(GO) -C release run ./cmd/image -o $(CURDIR)/bin/fsuser-csi-image.tar -tag $(IMAGE) -version $(VERSION) $(abspath $(BIN)/fsuser-csi)

release: ## Write what a release publishes to dist/, with the image as REPOSITORY: image, chart, manifests, plugin, SBOMs, checksums
	@$(GO) run ./test/cluster/build helm
	rm -rf dist
	$(GO) -C release run ./cmd/dist -o $(CURDIR)/dist -version $(VERSION) -repository $(REPOSITORY)

release-check: release ## Check dist/, run its programs, and compare it with a second release from a clone of the last commit
	FSUSER_DIST=$(CURDIR)/dist VERSION=$(VERSION) REPOSITORY=$(REPOSITORY) $(GO) -C release test -tags dist -count=1 -timeout 60m -v ./check

# The command is built first, because go run would turn every exit code other than 0 into 1.
CLUSTER := .cache/bin/fsuser-cluster/fsuser-cluster
.PHONY: $(CLUSTER)
$(CLUSTER):
	@$(GO) build -o $@ ./test/cluster/fsuser-cluster

# The number of nodes of the test cluster.
NODES ?= 1
cluster-up: prerequisites $(CLUSTER) ## Start a real Kubernetes of NODES nodes, built from Go modules (root)
	@$(CLUSTER) -nodes $(NODES) up

cluster-down: $(CLUSTER) ## Stop the test cluster, and leave nothing (root)
	@$(CLUSTER) down

cluster-shell: $(CLUSTER) ## Start a shell in the test cluster, with kubectl configured (root)
	@$(CLUSTER) shell

cluster-test: prerequisites ## Test that the test cluster works and leaves nothing (root)
	$(GO) test -tags cluster -count=1 -timeout=60m ./test/cluster/proof

E2E ?=
e2e: prerequisites ## Run the end-to-end tests on a real Kubernetes of NODES nodes, of KUBERNETES=1.35, 1.36 or 1.37, with ACCESS=node, namespaces or cluster (root), or on yours: KUBECONFIG, IMAGE, POD_IMAGE; ARCHIVE=dist/... has the driver's image
	$(GO) run ./test/e2e/run -nodes $(NODES) $(if $(E2E),-run '$(E2E)') $(if $(ARCHIVE),-archive '$(ARCHIVE)')

pages: prerequisites ## Run the commands of docs/platforms.md in a cluster like each platform, or like PLATFORM=k0s, and those of deploy/README.md for Kubernetes 1.35 (root)
	$(GO) run ./test/e2e/run -pages

versions: prerequisites ## Run the end-to-end tests with each version of Kubernetes and each kind of access, upgrade and downgrade the driver, and write docs/kubernetes-versions.md (root)
	@rm -rf .cache/versions
	$(GO) run ./test/e2e/run -versions

gallery: prerequisites ## Run real programs with their keys in a real cluster, and write docs/gallery.md (root)
	$(GO) run ./test/gallery/run

examples: ## Write examples/ from the gallery's table of programs
	$(GO) run ./test/gallery/run -examples

alerts: prerequisites control-plane ## Make each fault on real drivers, and see its alert in a real Prometheus, and each query of the dashboard (root)
	@$(GO) run ./test/cluster/build prometheus
	$(GO) test -tags '$(TAGS) alerts' -count=1 -timeout 20m -v ./test/alerts

conformance: prerequisites ## Run Kubernetes' own tests of its volumes and of CSI drivers on this driver, and write docs/conformance.md (root)
	@$(GO) run ./test/cluster/build ginkgo e2e.test agnhost
	$(GO) run ./test/conformance

vm: prerequisites ## Run the tests of the kernel parts, the driver and the demo in virtual machines with other kernels, and write docs/kernels.md (root)
	$(GO) run ./test/vm $(if $(VM),-run '$(VM)')

# SITE_URL: where the site is served, if not at the address in site/hugo.toml.
site: ## Build the site of the documents in site/public, with Hugo from its Go module
	CGO_ENABLED=0 $(GO) run github.com/gohugoio/hugo@v0.165.0 build --source site --cleanDestinationDir --noBuildLock \
		--panicOnWarning $(if $(SITE_URL),--baseURL $(SITE_URL))

# SCREENSHOTS=1 writes site/screenshots.
site-test: chromium site ## Check each page of the site and the search in Chromium
	$(GO) -C test/site test -count=1 . $(if $(SCREENSHOTS),-screenshots $(CURDIR)/site/screenshots)

chromium:
	@{ command -v chromium || command -v google-chrome; } >/dev/null || { \
		echo "installing with apt-get: chromium"; apt-get update && apt-get install --yes --no-install-recommends chromium; } >&2 || \
		{ echo "the checks of the site need a browser: install chromium"; exit 1; }

prerequisites:
	@test "$$(id -u)" = 0 || { echo "the tests mount and change owners: run them as root (sudo make ...)"; exit 1; }
	@echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 || { \
		echo "installing with apt-get: gcc libc6-dev"; apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev; } >&2 || \
		{ echo "the race detector needs a C compiler and the headers of libc: install gcc and libc6-dev"; exit 1; }

clean: ## Remove all built files, including the cache of test binaries
	rm -rf bin dist site/public .cache
