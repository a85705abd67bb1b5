# Hearth's one entry point: each CI job is one target. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

GO      ?= go
BIN     := $(CURDIR)/bin
RUNTIME := $(CURDIR)/.bin
IMAGES  := $(CURDIR)/.image
IMAGE   := $(IMAGES)/busybox.tar
IMAGE_DEBIAN := $(IMAGES)/debian.tar
STAMPS  := $(RUNTIME)/.stamps

# Two cores are the reference machine; tests of different packages that work on
# the same kernel never run at once (tools/testreport).
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -X main.version=$(VERSION)

# One set of flags for all that is built and not run with the race detector, the
# linter's view of it too: what one target has compiled, the others need not.
BUILD := CGO_ENABLED=0 $(GO) build -trimpath

# Versions live in the go.mod files of tools/runtime, with pinned sums.
module-version = $(shell awk '{ for (i = 1; i < NF; i++) if ($$i == "$(2)" && $$(i+1) ~ /^v[0-9]/) { print $$(i+1); exit } }' tools/runtime/$(1)/go.mod)
CONTAINERD_VERSION := $(call module-version,containerd,github.com/containerd/containerd/v2)
RUNC_VERSION       := $(call module-version,runc,github.com/opencontainers/runc)
CONTAINERD_STAMP   := $(STAMPS)/containerd-$(CONTAINERD_VERSION)
RUNC_STAMP         := $(STAMPS)/runc-$(RUNC_VERSION)

# What Debian gives, by the target that needs it.
DEBIAN_RUN    := busybox-static crun e2fsprogs libseccomp-dev pkg-config gcc libc6-dev nftables iproute2 util-linux procps tzdata
DEBIAN_VERIFY := clang-14 clang-format-14 llvm-14 libbpf-dev linux-libc-dev libc6-dev diffutils tar
DEBIAN_VM     := qemu-system-x86 busybox-static e2fsprogs
DEBIAN_IMAGE  := debootstrap debian-archive-keyring util-linux tar

# Programs of tools/go.mod and tools/lint/go.mod, so that their dependencies
# never meet ours.
TOOL = CGO_ENABLED=0 $(GO) -C tools run -trimpath

# Tests and the demo find containerd, its shim and runc here.
export PATH := $(RUNTIME):$(PATH)
export HEARTH_TEST_BIN := $(RUNTIME)
export HEARTH_RUNTIME_DIR := $(RUNTIME)
export HEARTH_BIN_DIR := $(BIN)
export HEARTH_IMAGE := $(IMAGE)

.PHONY: help
help: ## list the targets
	@echo 'usage: make TARGET'
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z][a-z0-9-]*:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile

##@ Build

.PHONY: deps
deps: deps-debian $(CONTAINERD_STAMP) $(RUNC_STAMP) ## install what Hearth runs on: Debian packages, containerd, runc (idempotent)

.PHONY: deps-debian deps-verify deps-vm
deps-debian:
	@tools/debian-install.sh $(DEBIAN_RUN)
deps-verify:
	@tools/debian-install.sh $(DEBIAN_VERIFY)
	@tools/check-clang.sh
deps-vm:
	@tools/debian-install.sh $(DEBIAN_VM)

CONTAINERD_PKG := github.com/containerd/containerd/v2
CONTAINERD_LD  := -s -w -X $(CONTAINERD_PKG)/version.Version=$(CONTAINERD_VERSION) -X $(CONTAINERD_PKG)/version.Package=$(CONTAINERD_PKG)

$(CONTAINERD_STAMP): tools/runtime/containerd/go.mod tools/runtime/containerd/go.sum
	@echo "deps: build containerd $(CONTAINERD_VERSION)" >&2
	@mkdir -p $(STAMPS)
	@cd tools/runtime/containerd && $(GO) build -trimpath -tags urfave_cli_no_docs -ldflags '$(CONTAINERD_LD)' -o $(RUNTIME)/ \
	  $(CONTAINERD_PKG)/cmd/containerd $(CONTAINERD_PKG)/cmd/ctr
	@cd tools/runtime/containerd && CGO_ENABLED=0 $(GO) build -trimpath -tags 'urfave_cli_no_docs no_grpc' -ldflags '$(CONTAINERD_LD)' -o $(RUNTIME)/ \
	  $(CONTAINERD_PKG)/cmd/containerd-shim-runc-v2
	@$(RUNTIME)/containerd --version | grep -qw '$(CONTAINERD_VERSION)' || { echo "deps: $(RUNTIME)/containerd does not say version $(CONTAINERD_VERSION)" >&2; exit 1; }
	@rm -f $(STAMPS)/containerd-* && touch $@

# seccomp comes from libseccomp by cgo. libpathrs, upstream's other default, is
# not in Debian 12.
$(RUNC_STAMP): tools/runtime/runc/go.mod tools/runtime/runc/go.sum | deps-debian
	@echo "deps: build runc $(RUNC_VERSION)" >&2
	@mkdir -p $(STAMPS)
	@cd tools/runtime/runc && $(GO) build -trimpath -tags 'seccomp urfave_cli_no_docs' -ldflags '-s -w' -o $(RUNTIME)/runc github.com/opencontainers/runc
	@$(RUNTIME)/runc --version | grep -q '^libseccomp: ' || { echo "deps: $(RUNTIME)/runc was built without seccomp" >&2; exit 1; }
	@rm -f $(STAMPS)/runc-* && touch $@

# A Kubernetes cluster for tests, built through the Go module proxy: the four
# programs of the control plane and the node, kube-proxy, kubectl, etcd and the
# CNI plugins. About eight minutes when Go's build cache is empty.
CLUSTER := $(RUNTIME)/cluster
KUBERNETES_VERSION := $(call module-version,kubernetes,k8s.io/kubernetes)
ETCD_VERSION       := $(call module-version,etcd,go.etcd.io/etcd/server/v3)
CNI_VERSION        := $(call module-version,cni,github.com/containernetworking/plugins)
KUBERNETES_STAMP   := $(STAMPS)/kubernetes-$(KUBERNETES_VERSION)
ETCD_STAMP         := $(STAMPS)/etcd-$(ETCD_VERSION)
CNI_STAMP          := $(STAMPS)/cni-$(CNI_VERSION)

KUBERNETES_PROGRAMS := kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl kubelet
KUBERNETES_MINOR    := $(word 2,$(subst ., ,$(KUBERNETES_VERSION)))
KUBERNETES_LD       := -s -w $(addprefix -X k8s.io/component-base/version.,gitVersion=$(KUBERNETES_VERSION) gitMajor=1 gitMinor=$(KUBERNETES_MINOR) gitTreeState=clean)
CNI_PLUGINS         := main/bridge main/loopback ipam/host-local meta/portmap

.PHONY: cluster-binaries cluster-programs
cluster-binaries: $(KUBERNETES_STAMP) $(ETCD_STAMP) $(CNI_STAMP) cluster-programs ## build what the test cluster runs: Kubernetes, etcd, CNI plugins (minutes when cold)

# The cluster's own driver, and the program of its sandbox image.
cluster-programs:
	@mkdir -p $(CLUSTER)
	@$(BUILD) -o $(CLUSTER)/cluster ./test/cluster/cmd
	@$(BUILD) -ldflags '-s -w' -o $(CLUSTER)/pause ./test/cluster/pause

$(KUBERNETES_STAMP): tools/runtime/kubernetes/go.mod tools/runtime/kubernetes/go.sum
	@echo "cluster-binaries: build Kubernetes $(KUBERNETES_VERSION)" >&2
	@mkdir -p $(STAMPS) $(CLUSTER)
	@cd tools/runtime/kubernetes && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(KUBERNETES_LD)' -o $(CLUSTER)/ $(addprefix k8s.io/kubernetes/cmd/,$(KUBERNETES_PROGRAMS))
	@$(CLUSTER)/kubelet --version | grep -qw '$(KUBERNETES_VERSION)' || { echo "cluster-binaries: $(CLUSTER)/kubelet does not say version $(KUBERNETES_VERSION)" >&2; exit 1; }
	@rm -f $(STAMPS)/kubernetes-* && touch $@

$(ETCD_STAMP): tools/runtime/etcd/go.mod tools/runtime/etcd/go.sum
	@echo "cluster-binaries: build etcd $(ETCD_VERSION)" >&2
	@mkdir -p $(STAMPS) $(CLUSTER)
	@cd tools/runtime/etcd && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CLUSTER)/etcd go.etcd.io/etcd/server/v3
	@$(CLUSTER)/etcd --version | grep -qw '$(ETCD_VERSION:v%=%)' || { echo "cluster-binaries: $(CLUSTER)/etcd does not say version $(ETCD_VERSION)" >&2; exit 1; }
	@rm -f $(STAMPS)/etcd-* && touch $@

$(CNI_STAMP): tools/runtime/cni/go.mod tools/runtime/cni/go.sum
	@echo "cluster-binaries: build CNI plugins $(CNI_VERSION)" >&2
	@mkdir -p $(STAMPS) $(CLUSTER)/cni
	@cd tools/runtime/cni && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CLUSTER)/cni/ $(addprefix github.com/containernetworking/plugins/plugins/,$(CNI_PLUGINS))
	@rm -f $(STAMPS)/cni-* && touch $@

.PHONY: build
build: ## compile nodeagent, controller, envinit and hearthctl into bin/
	@mkdir -p $(BIN)
	@$(BUILD) -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/nodeagent ./cmd/controller ./cmd/hearthctl
	@$(BUILD) -ldflags '-s -w $(LDFLAGS)' -o $(BIN)/ ./cmd/envinit

.PHONY: image
image: $(IMAGE) ## make the demo's OCI image from busybox-static, without a registry

$(IMAGE): $(wildcard tools/mkimage/*.go) | deps-debian
	@mkdir -p $(@D)
	@$(TOOL) ./mkimage -busybox /bin/busybox -o $@

.PHONY: image-debian
image-debian: $(IMAGE_DEBIAN) ## make a Debian image with compilers, PostgreSQL and Redis by debootstrap, as root (minutes, kept)

$(IMAGE_DEBIAN): tools/debian-image.sh $(filter-out %_test.go,$(wildcard tools/mkimage/*.go)) | need-root
	@tools/debian-install.sh $(DEBIAN_IMAGE)
	@mkdir -p $(IMAGES)/bin
	@CGO_ENABLED=0 $(GO) -C tools build -trimpath -ldflags '-s -w' -o $(IMAGES)/bin/ ./mkimage
	@tools/debian-image.sh $(IMAGES)/bin/mkimage $@

# Each archive has its image under two names: the version, and devel, which is
# what deploy/ names until an overlay says otherwise.
IMAGE_NAMES = -ref docker.io/hearth/$(1):$(VERSION) -ref docker.io/hearth/$(1):devel -version $(VERSION)

.PHONY: images
images: $(IMAGE) ## make the images of agent, controller and hold pods as OCI archives in .image/, without a container engine
	@mkdir -p $(IMAGES)/bin
	@$(BUILD) -ldflags '-s -w $(LDFLAGS)' -o $(IMAGES)/bin/ ./cmd/nodeagent ./cmd/controller ./cmd/envinit
	@CGO_ENABLED=0 $(GO) -C tools build -trimpath -ldflags '-s -w' -o $(IMAGES)/bin/ ./pause ./mkimage
	@$(IMAGES)/bin/mkimage $(call IMAGE_NAMES,nodeagent) -file $(IMAGES)/bin/nodeagent=/usr/bin/nodeagent -file $(IMAGES)/bin/envinit=/usr/bin/envinit \
	  -entrypoint /usr/bin/nodeagent -o $(IMAGES)/nodeagent.tar
	@$(IMAGES)/bin/mkimage $(call IMAGE_NAMES,controller) -file $(IMAGES)/bin/controller=/usr/bin/controller -user 65532:65532 \
	  -entrypoint /usr/bin/controller -o $(IMAGES)/controller.tar
	@$(IMAGES)/bin/mkimage $(call IMAGE_NAMES,pause) -file $(IMAGES)/bin/pause=/pause -user 65532:65532 -entrypoint /pause -o $(IMAGES)/pause.tar

.PHONY: generate
generate: deps-verify ## regenerate API code, eBPF objects, CRDs and reference docs
	@$(GO) generate ./...

.PHONY: format
format: deps-verify ## format Go and eBPF C
	@tools/format.sh

.PHONY: tidy
tidy: ## tidy every module
	@tools/tidy.sh

##@ Test

# Tools are tested anew each time: the cache does not see the files beyond their
# module that deploycheck reads.
.PHONY: test-unit
test-unit: ## unit tests with -race; no root, under a minute after the build
	@$(GO) test -race -skip '^Test(Kernel|Node)' ./...
	@$(GO) -C tools test -count=1 ./...
	@$(GO) -C test/vm test -skip '^TestKernel' ./...

.PHONY: test
test: need-root deps build image ## as root: unit, kernel and node tests with -race; compares skips with test/skips.txt
	@CGO_ENABLED=0 $(GO) -C tools build -trimpath -o $(RUNTIME)/ ./testreport
	@$(RUNTIME)/testreport -dir $(CURDIR) -skips test/skips.txt -race

.PHONY: need-root
need-root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(or $(firstword $(MAKECMDGOALS)),test) works on the real kernel and containerd and needs root; without root run: make test-unit" >&2; exit 1; }

.PHONY: test-real
test-real: need-root deps build image image-debian ## in environments of a Debian image: apt-get, PostgreSQL, Redis, git, compilers, ping
	@HEARTH_IMAGE=$(IMAGE_DEBIAN) $(GO) test -race -tags e2e -count 1 -timeout 10m ./test/real

# The long forms of what `make test` does in short: minutes each.
ENDURANCE := ^TestNode(Cycles|EnvironmentsOutlive|Monstrous|Directories|ExecsByThe|AFreezeOrKill|InitThatLies)

.PHONY: test-endurance
test-endurance: need-root deps build image ## as root, some ten minutes: 1,000 claims and releases, 200 environments over restarts, hostility without end
	@HEARTH_ENDURANCE=1 $(GO) test -count 1 -timeout 30m -run '$(ENDURANCE)' -v ./test/node

.PHONY: test-cluster
test-cluster: need-root deps cluster-binaries image ## bring the test cluster up, check what the e2e tests build on, take it down
	@$(GO) test -tags e2e -count 1 -timeout 10m -run '^TestCluster' -v ./test/cluster

.PHONY: test-vm
test-vm: need-root deps-vm ## kernel tests in a VM: Linux 6.1, pure cgroup v2, BPF LSM
	@test/vm/run.sh

.PHONY: test-vm-node
test-vm-node: need-root deps deps-vm image ## tests of a whole node in a VM with systemd as init, its tree delegated, crun too; some twelve minutes
	@tools/debian-install.sh $(DEBIAN_IMAGE)
	@test/vm/node.sh

# The monitoring that alerts are tested with, as Debian has it; nothing of it is
# installed, so that no service of it starts.
MONITORING := $(RUNTIME)/monitoring

.PHONY: monitoring
monitoring: need-root
	@tools/debian-unpack.sh $(MONITORING) prometheus prometheus-alertmanager

.PHONY: test-kube
test-kube: cluster-binaries ## state, leadership, classes, hold pods and identity against a real API server, without a cluster
	@HEARTH_CLUSTER_BIN=$(abspath $(CLUSTER)) $(GO) test -race -tags e2e -count 1 -timeout 15m ./internal/kube/...
	@HEARTH_CLUSTER_BIN=$(abspath $(CLUSTER)) $(GO) test -race -tags e2e -count 1 -timeout 10m -run '^Test(RealTokens|ARestartedPod|KnownCallers)' ./cmd/controller

.PHONY: test-deploy
test-deploy: ## render every base of deploy/ and hold rights, host paths and privileges against docs/security.md
	@CGO_ENABLED=0 $(GO) -C tools test -trimpath -count=1 ./deploycheck

.PHONY: test-alerts
test-alerts: monitoring ## alerts, scrape configuration and dashboard against a real promtool
	@CGO_ENABLED=0 $(GO) run -trimpath ./test/monitoring/promcheck -promtool $(MONITORING)/usr/bin/promtool

.PHONY: e2e-programs
e2e-programs: deps cluster-binaries monitoring build images demo-programs
	@$(BUILD) -o $(RUNTIME)/ ./test/e2e

# JOURNEYS='detect drain' goes through those and install only; KEEP=1 leaves the
# cluster running, for `.bin/e2e again JOURNEY…` and `.bin/e2e down`.
JOURNEYS ?=

.PHONY: test-e2e e2e-down
test-e2e: need-root e2e-programs ## on a real Kubernetes cluster: install, every journey, uninstall; JOURNEYS=… and KEEP=1
	@$(RUNTIME)/e2e run $(JOURNEYS)

e2e-down: need-root ## end a cluster that KEEP=1 left running
	@if [ -x $(RUNTIME)/e2e ]; then $(RUNTIME)/e2e down; else echo 'e2e: none was started from this tree'; fi

.PHONY: verify
verify: deps-verify ## generate, format, tidy, lint and docs in a copy of the tree; fails on a difference and names the fix
	@tools/verify.sh

.PHONY: lint
lint: ## static analysis by .golangci.yml
	@tools/lint.sh

.PHONY: lint-program
lint-program: # the linter alone, minutes when cold
	@tools/lint.sh --build

.PHONY: docs
docs: ## check links, make targets and the dependency table of the documents
	@$(TOOL) ./docscheck -dir $(CURDIR)

##@ Run

# The demo's driver, and the static program that it runs inside environments.
.PHONY: demo-programs
demo-programs:
	@mkdir -p $(RUNTIME)
	@$(BUILD) -o $(RUNTIME)/ ./test/demo ./test/demo/probe

# KEEP=1 on the command line reaches the demo as a variable of its environment.
.PHONY: demo
demo: need-root deps build image demo-programs ## run the main job end to end in namespaces of its own; KEEP=1 leaves it running
	@$(RUNTIME)/demo run

.PHONY: demo-stop
demo-stop: need-root ## end a demo that KEEP=1 left running
	@if [ -x $(RUNTIME)/demo ]; then $(RUNTIME)/demo stop; else echo 'demo: none was started from this tree'; fi

BENCH_CLAIM ?= $(GO) test -run '^$$' -bench 'Claim|NodeCall|Containerd|PoolFill' -timeout 20m ./test/bench

# Everything that is not a result goes to standard error. Line by line: a run takes minutes.
BENCH_LINES = sed -u -e '/^Benchmark/b' -e 'w /dev/stderr' -e d

.PHONY: bench-claim bench-builds bench-density bench-neighbours bench-snapshot bench-island bench-detect bench-disk bench-exec
bench-claim: need-root deps build image demo-programs ## benchmark claims beside containerd; prints only benchmark lines
	@$(BENCH_CLAIM) | $(BENCH_LINES)

# BASE is another build's nodeagent, kept before a change: cp bin/nodeagent /tmp/before.
bench-builds: need-root need-base deps build image demo-programs ## compare claims by this build and by BASE=NODEAGENT, in turns on one stage
	@HEARTH_BENCH_BASE='$(abspath $(BASE))' $(GO) test -run '^$$' -bench Builds -benchtime $(or $(TURNS),6)x -timeout 30m ./test/bench | $(BENCH_LINES)

.PHONY: need-base
need-base:
	@[ -x '$(BASE)' ] || { echo "bench-builds: BASE='$(BASE)': name another build's nodeagent" >&2; exit 2; }

bench-density: need-root deps build image demo-programs ## measure what 200 idle environments cost beside what they do
	@$(GO) test -run '^$$' -bench Density -timeout 15m ./test/bench | $(BENCH_LINES)

bench-neighbours: need-root deps build image demo-programs ## claims and commands beside an environment that forks, hogs, fills and spins
	@$(GO) test -run '^$$' -bench Neighbours -timeout 15m ./test/bench | $(BENCH_LINES)

bench-snapshot: ## benchmark the snapshot store: chunking, capture, restore
	@$(GO) test -run '^$$' -bench . ./internal/snapshot | $(BENCH_LINES)

bench-island: need-root ## benchmark an island: nanoseconds a packet, unlock, create and destroy
	@$(GO) test -run '^$$' -bench '^BenchmarkKernel' ./internal/netpol | $(BENCH_LINES)

bench-detect: ## benchmark detection: engine, flow reassembly, rules
	@$(GO) test -run '^$$' -bench . ./internal/detect/... | $(BENCH_LINES)

bench-disk: need-root ## benchmark the disk guard: what a written page and a look at the disks cost
	@$(GO) test -run '^$$' -bench '^BenchmarkKernel' ./internal/disk | $(BENCH_LINES)

bench-exec: need-root ## benchmark a process in an environment, from the host to its end
	@$(GO) test -run '^$$' -bench '^BenchmarkExec$$' ./internal/guest | $(BENCH_LINES)

.PHONY: bench-kube
bench-kube: need-root e2e-programs ## benchmark claims on Kubernetes beside plain pods; prints only benchmark lines
	@$(RUNTIME)/e2e bench | $(BENCH_LINES)

.PHONY: clean
clean: ## remove what was built here (keeps Go's caches)
	@rm -rf $(BIN) $(RUNTIME) .image .vm .verify .demo .test
