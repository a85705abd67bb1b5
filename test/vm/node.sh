#!/bin/bash
# node.sh: runs tests of a whole node in a VM as nodes are: Debian with systemd as
# init, Linux 6.1, pure cgroup v2. The agents' trees are in scopes that systemd
# delegates. Skips are held against test/skips-vm-node.txt.
#
# The kernel and Debian's root (.vm/kernel, .vm/debian) are kept. VM_RUN=TestNodePause
# runs other tests than those that are chosen here, and holds no skips.
#
# Emulated code is ten to twenty times as slow as native: what is chosen is what
# depends on the kernel, on cgroups and on their manager, and each test's patience is
# multiplied (HEARTH_TEST_SLOW). Nothing here says anything about times.
set -euo pipefail
cd "$(dirname "$0")/../.."

NAME=test-vm-node
VM=$PWD/.vm
LIMIT=${VM_TIMEOUT:-1500} # seconds for the whole life of the VM
MEMORY=${VM_MEMORY:-4G}
. test/vm/machine.sh

# chosen are the node tests, by words that begin their names.
chosen=(
	UnitOfSystemd TreeOfAnEarlierAgent              # the delegated tree
	EnvironmentsOfCrun                              # another runtime, claim to restore
	PauseStopsEverything PauseSurvivesSIGKILL       # the freezer, a restart
	AFrozenEnvironmentCanBeKilled AFreezeOrKill     # frozen, and stuck in the kernel
	ResizedLimits AClassThatAsksForWhatTheNodeLacks # limits inside
	AnEnvironmentOutOfMemory                        # memory kill
	DeflatesReadySlots                              # memory.reclaim by an agent
	SIGTERMLeavesEverythingRunning                  # recovery
	CleanupRemovesEverything                        # nothing is left
)
pattern="^TestNode($(IFS='|'; echo "${chosen[*]}"))"

# build_tests lays the tree out below /hearth as the tests know it.
build_tests() {
	local at=$VM/root/hearth package
	mkdir -p "$at"/{bin,.bin,.image,programs,test/node,internal/systemd}
	for package in ./cmd/nodeagent ./cmd/controller ./cmd/hearthctl ./cmd/envinit; do
		CGO_ENABLED=0 go build -trimpath -o "$at/bin/" "$package" || fail "build $package"
	done
	for package in ./test/demo/probe ./test/node/liar ./test/node/intruder; do
		CGO_ENABLED=0 go build -trimpath -o "$at/programs/" "$package" || fail "build $package"
	done
	for package in test/node internal/systemd; do
		CGO_ENABLED=0 go test -c -trimpath -o "$at/$package/the.test" "./$package" || fail "compile the tests of $package"
		if [ -d "$package/testdata" ]; then cp -a "$package/testdata" "$at/$package/"; fi
	done
	cp .bin/{containerd,containerd-shim-runc-v2,ctr,runc} "$at/.bin/"
	cp .image/busybox.tar "$at/.image/"
	printf '%s\n' "hearth/internal/systemd /hearth/internal/systemd ${VM_RUN:-^TestKernel}" \
		"hearth/test/node /hearth/test/node ${VM_RUN:-$pattern}" >"$at/list"
}

# build_root is Debian, the kernel's modules, and a unit that runs the tests.
build_root() {
	local root=$VM/root release=$1
	rm -rf "$root"
	cp -a --reflink=auto "$VM/debian/root" "$root"
	mkdir -p "$root/usr/lib/modules"
	cp -a "$VM/kernel/lib/modules/$release" "$root/usr/lib/modules/"
	chroot "$root" depmod "$release" || fail "depmod $release"
	cp test/vm/guest/node-tests "$root/usr/local/sbin/"
	cp test/vm/guest/node-tests.service "$root/etc/systemd/system/"
	mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
	ln -sf ../node-tests.service "$root/etc/systemd/system/multi-user.target.wants/"
	printf '%s\n' overlay veth sch_ingress cls_bpf act_bpf nf_tables nft_chain_nat nft_masq nft_ct loop >"$root/etc/modules-load.d/node.conf"
}

fetch_kernel
test/vm/debian.sh "$VM/debian"
release=$(basename "$VM"/kernel/lib/modules/*)
echo "$NAME: $(awk '{ print $2 }' "$VM/kernel/version" | paste -sd' '), systemd $(chroot "$VM/debian/root" dpkg-query -W -f '${Version}' systemd)"
build_root "$release"
build_tests
build_disk 4G
build_initramfs "$release"
boot "$release"
skips=test/skips-vm-node.txt
if [ -n "${VM_RUN:-}" ]; then
	skips=.vm/skips
	: >"$skips"
	echo "$NAME: what follows is a part of the tests (VM_RUN)"
fi
report "$VM/root/hearth/list" "$skips"
