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
mkdir -p "$VM"

fail() {
	echo "test-vm: $*" >&2
	exit 1
}

# fetch_kernel unpacks the kernel package once; .vm/kernel/version names it.
fetch_kernel() {
	local series package download
	series=$(grep -v '^#' test/vm/kernel)
	if [ -e "$VM/kernel/version" ]; then return; fi
	package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }') || true
	if [ -z "$package" ]; then
		[ "$(id -u)" = 0 ] && apt-get update -qq </dev/null
		package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
	fi
	case $package in
	"linux-image-$series."*) ;;
	*) fail "linux-image-cloud-amd64 is ${package:-not available}, want series $series (test/vm/kernel)" ;;
	esac
	download=$(mktemp -d "$VM/download.XXXXXX")
	(cd "$download" && { apt-get download -qq "$package" || { apt-get update -qq && apt-get download -qq "$package"; }; } </dev/null 2>"$download/log") ||
		fail "apt-get download $package: $(cat "$download/log")"
	rm -rf "$VM/kernel"
	mkdir "$VM/kernel"
	dpkg-deb -x "$download"/*.deb "$VM/kernel"
	dpkg-deb -f "$download"/*.deb Package Version >"$VM/kernel/version.tmp"
	rm -rf "$download"
	mv "$VM/kernel/version.tmp" "$VM/kernel/version"
}

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

# build_root lays out the disk: busybox, all of the kernel's modules, the tests. It
# counts by project, as a disk does that bounds what each environment takes.
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
	rm -f "$VM/root.img"
	mke2fs -q -t ext4 -O ^has_journal,quota,project -E quotatype=prjquota -d "$root" "$VM/root.img" 2G >"$VM/mke2fs.log" 2>&1 || fail "mke2fs: $(cat "$VM/mke2fs.log")"
}

build_initramfs() {
	local dir=$VM/initramfs module release=$1
	rm -rf "$dir"
	mkdir -p "$dir"/{bin,dev,root,modules}
	cp /bin/busybox "$dir/bin/"
	for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk quota_tree quota_v2; do
		find "$VM/kernel/lib/modules/$release" -name "$module.ko" -exec cp {} "$dir/modules/" \;
		[ -e "$dir/modules/$module.ko" ] || fail "kernel $release has no module $module"
	done
	cp test/vm/guest/initramfs-init "$dir/init"
	(cd "$dir" && find . | /bin/busybox cpio -o -H newc 2>/dev/null) >"$VM/initramfs.cpio"
}

# expected_skips lists those of what runs.
expected_skips() {
	local package name reason
	grep -v '^#' test/skips-vm.txt | while read -r package name reason; do
		if [ -n "$package" ] && wanted "$package" && [[ $name =~ $RUN ]]; then echo "$package $name  $reason"; fi
	done
}

# boot runs the VM until it powers off or its time is up.
boot() {
	local release=$1 status=0
	rm -f "$VM/console.log" "$VM/results.log"
	rm -f "$VM/swap.img"
	truncate -s 512M "$VM/swap.img" # the guest makes it a swap area
	timeout --kill-after=10 "$LIMIT" qemu-system-x86_64 \
		-accel tcg,thread=multi -cpu max -smp 2 -m "$MEMORY" -no-reboot -nodefaults -display none -nic none \
		-kernel "$VM/kernel/boot/vmlinuz-$release" -initrd "$VM/initramfs.cpio" \
		-append "console=ttyS0 panic=-1 quiet lsm=landlock,lockdown,yama,bpf" \
		-drive "file=$VM/root.img,format=raw,if=virtio,cache=unsafe" \
		-drive "file=$VM/swap.img,format=raw,if=virtio,cache=unsafe" \
		-serial "file:$VM/console.log" -serial "file:$VM/results.log" </dev/null || status=$?
	case $status in
	0) ;;
	124 | 137) echo "test-vm: the VM did not end within $LIMIT s (VM_TIMEOUT); its console ended with:" >&2 ;;
	*) echo "test-vm: qemu ended with status $status; the console ended with:" >&2 ;;
	esac
	if [ "$status" != 0 ]; then tail -n 20 "$VM/console.log" >&2 || true; fi
	return 0
}

fetch_kernel
release=$(basename "$VM"/kernel/lib/modules/*)
echo "test-vm: $(awk '{ print $2 }' "$VM/kernel/version" | paste -sd' ')"
rm -rf "$VM/root"
build_tests
build_root "$release"
build_initramfs "$release"
begin=$SECONDS
boot "$release"
echo "test-vm: VM ran for $((SECONDS - begin)) s"
[ -e "$VM/results.log" ] || fail "the VM wrote nothing; see .vm/console.log"

# A VM that died midway leaves a package without its end, which is a failure
# that results names; testreport prints and counts, in every case.
skips=test/skips-vm.txt part=
if [ -n "${VM_PKGS:-}${VM_RUN:-}" ]; then
	skips=.vm/skips part=1
	expected_skips >"$skips"
fi
status=0
go -C test/vm run ./results -list "$VM/root/tests/list" <"$VM/results.log" >"$VM/tests.json" || status=1
go -C tools run ./testreport -stdin -dir "$PWD" -skips "$skips" <"$VM/tests.json" || status=1
rm -rf "$VM/root" "$VM/root.img" "$VM/swap.img" "$VM/initramfs" "$VM/initramfs.cpio" "$VM/skips"
if [ -n "$part" ]; then echo "test-vm: that was a part of the tests (VM_PKGS, VM_RUN)"; fi
exit $status
