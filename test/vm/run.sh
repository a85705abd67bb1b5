#!/bin/bash
# run.sh: runs every TestKernel… in a VM with Debian's 6.1 kernel, pure cgroup
# v2 and the BPF LSM, and holds its skips against test/skips-vm.txt.
#
# Everything lands in .vm/: the kernel (kept), the root disk (made anew), the
# console's log, and tests.json in the format of `go test -json`.
#
# While working on one part, VM_PKGS='hearth/internal/netpol …' and
# VM_RUN=TestKernelFragments run less; the skip list then counts only for what
# ran, and the last line says that it was a part.
set -euo pipefail
cd "$(dirname "$0")/../.."

VM=$PWD/.vm
LIMIT=${VM_TIMEOUT:-900} # seconds for the whole life of the VM
MEMORY=${VM_MEMORY:-3G}
PACKAGES=${VM_PKGS:-}
RUN=${VM_RUN:-^TestKernel}
NAME=test-vm
. test/vm/machine.sh

# module_packages prints "import-path folder" of each package with kernel tests
# in the module of the given folder.
module_packages() {
	(cd "$1" && go list -f '{{$p := .}}{{range .TestGoFiles}}{{$p.ImportPath}} {{$p.Dir}} {{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$p.ImportPath}} {{$p.Dir}} {{.}}{{"\n"}}{{end}}' ./...) |
		while read -r package dir file; do
			if grep -q '^func TestKernel' "$dir/$file"; then echo "$package $dir"; fi
		done | sort -u
}

# build_tests compiles them statically, without the race detector: emulated code
# is slow, and `make test` runs the same tests with it.
build_tests() {
	local tests=$VM/root/tests module package dir
	mkdir -p "$tests/programs"
	: >"$tests/list"
	for module in . test/vm; do
		while read -r package dir; do
			wanted "$package" || continue
			mkdir -p "$tests/$package"
			(cd "$module" && CGO_ENABLED=0 go test -c -trimpath -o "$tests/$package/kernel.test" "$package") ||
				fail "compile the tests of $package"
			if [ -d "$dir/testdata" ]; then cp -a "$dir/testdata" "$tests/$package/"; fi
			echo "$package /tests/$package" >>"$tests/list"
		done < <(module_packages "$module")
	done
	[ -s "$tests/list" ] || fail "no package has a TestKernel"
	echo "$RUN" >"$tests/run"
	build_programs "$tests/programs"
}

# wanted tells whether the package is to run.
wanted() {
	[ -z "$PACKAGES" ] || [[ " $PACKAGES " == *" $1 "* ]]
}

# build_programs makes what tests would build themselves where there is a Go.
build_programs() {
	local package
	for package in ./cmd/envinit ./internal/guest/guesttest/testdata/peer; do
		CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$1/" "$package" || fail "build $package"
	done
}

# build_root lays out the disk: busybox, all of the kernel's modules, the tests.
build_root() {
	local root=$VM/root release=$1 applet
	mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,etc,proc,sys,dev,run,tmp,root,var/tmp,var/lib,lib/modules}
	chmod 1777 "$root/tmp" "$root/var/tmp"
	cp /bin/busybox "$root/bin/busybox"
	for applet in $(/bin/busybox --list-full); do
		[ -e "$root/$applet" ] || ln -s /bin/busybox "$root/$applet"
	done
	cp -a "$VM/kernel/lib/modules/$release" "$root/lib/modules/"
	/bin/busybox depmod -b "$root" "$release" || true
	[ -s "$root/lib/modules/$release/modules.dep" ] || fail "depmod made no modules.dep"
	echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
	echo 'root:x:0:' >"$root/etc/group"
	echo '127.0.0.1 localhost' >"$root/etc/hosts"
	rm -f "$root/sbin/init"
	cp test/vm/guest/init "$root/sbin/init"
	build_disk 2G
}

# expected_skips lists those of what runs.
expected_skips() {
	local package name reason
	grep -v '^#' test/skips-vm.txt | while read -r package name reason; do
		if [ -n "$package" ] && wanted "$package" && [[ $name =~ $RUN ]]; then echo "$package $name  $reason"; fi
	done
}

fetch_kernel
release=$(basename "$VM"/kernel/lib/modules/*)
echo "test-vm: $(awk '{ print $2 }' "$VM/kernel/version" | paste -sd' ')"
rm -rf "$VM/root"
build_tests
build_root "$release"
build_initramfs "$release"
boot "$release"

skips=test/skips-vm.txt part=
if [ -n "${VM_PKGS:-}${VM_RUN:-}" ]; then
	skips=.vm/skips part=1
	expected_skips >"$skips"
fi
status=0
report "$VM/root/tests/list" "$skips" || status=1
if [ -n "$part" ]; then echo "test-vm: that was a part of the tests (VM_PKGS, VM_RUN)"; fi
exit $status
