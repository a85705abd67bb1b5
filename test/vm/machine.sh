# machine.sh: the VM that tests run in, for scripts that set NAME, VM, LIMIT and
# MEMORY. Its root disk is $VM/root.img; the console goes to $VM/console.log, the
# second serial port to $VM/results.log.

mkdir -p "$VM"

fail() {
	echo "$NAME: $*" >&2
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

# build_disk SIZE makes the root disk of $VM/root. It counts by project, as a disk
# does that bounds what each environment takes.
build_disk() {
	rm -f "$VM/root.img"
	mke2fs -q -t ext4 -O ^has_journal,quota,project -E quotatype=prjquota -d "$VM/root" "$VM/root.img" "$1" >"$VM/mke2fs.log" 2>&1 ||
		fail "mke2fs: $(cat "$VM/mke2fs.log")"
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

# boot runs the VM until it powers off or its time is up.
boot() {
	local release=$1 status=0 begin=$SECONDS
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
	124 | 137) echo "$NAME: the VM did not end within $LIMIT s (VM_TIMEOUT); its console ended with:" >&2 ;;
	*) echo "$NAME: qemu ended with status $status; the console ended with:" >&2 ;;
	esac
	if [ "$status" != 0 ]; then tail -n 20 "$VM/console.log" >&2 || true; fi
	echo "$NAME: VM ran for $((SECONDS - begin)) s"
	[ -e "$VM/results.log" ] || fail "the VM wrote nothing; see .vm/console.log"
}

# report LIST SKIPS prints what the listed packages' tests did, holds their skips
# against the list, and removes what was made for the run. A VM that died midway
# leaves a package without its end, which is a failure that results names;
# testreport prints and counts, in every case.
report() {
	local status=0
	go -C test/vm run ./results -list "$1" <"$VM/results.log" >"$VM/tests.json" || status=1
	go -C tools run ./testreport -stdin -dir "$PWD" -skips "$2" <"$VM/tests.json" || status=1
	rm -rf "$VM/root" "$VM/root.img" "$VM/swap.img" "$VM/initramfs" "$VM/initramfs.cpio" "$VM/skips"
	return $status
}
