package main

import (
	"archive/tar"
	"path"
	"sort"
)

// resolver is the gateway of every island, where the agent answers DNS.
const resolver = "100.96.0.1"

// utc is the time zone file of UTC: an empty version 1 block, then a version 2
// block with one type and the footer "UTC0" (RFC 8536, section 3).
const utc = "TZif2" + zeros15 + counts + body + "TZif2" + zeros15 + counts + body + "\nUTC0\n"

const (
	zeros15 = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	// isutcnt, isstdcnt, leapcnt, timecnt, typecnt, charcnt.
	counts = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x04"
	// Offset 0, not daylight saving, abbreviation at 0: "UTC".
	body = "\x00\x00\x00\x00\x00\x00UTC\x00"
)

// rootfs is the image's file system: busybox with a link for each applet, the
// files that programs look for, and empty directories to mount on.
func rootfs(busybox []byte, applets []string) []entry {
	entries := []entry{
		directory("bin", 0o755),
		directory("dev", 0o755),
		directory("etc", 0o755),
		directory("home", 0o755),
		directory("proc", 0o555),
		directory("root", 0o700),
		directory("run", 0o755),
		directory("sbin", 0o755),
		directory("sys", 0o555),
		directory("tmp", 0o1777),
		directory("usr", 0o755),
		directory("usr/bin", 0o755),
		directory("usr/sbin", 0o755),
		directory("usr/share", 0o755),
		directory("usr/share/zoneinfo", 0o755),
		directory("var", 0o755),
		directory("var/lib", 0o755),
		directory("var/log", 0o755),
		directory("var/tmp", 0o1777),
		directory("var/www", 0o755),
		directory("workspace", 0o755),
		{name: "bin/busybox", kind: tar.TypeReg, mode: 0o755, data: busybox},
		file("etc/group", 0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
		file("etc/hosts", 0o644, "127.0.0.1\tlocalhost\n"),
		link("etc/localtime", "/usr/share/zoneinfo/UTC"),
		file("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n"),
		file("etc/os-release", 0o644, "ID=busybox\nNAME=\"BusyBox\"\nPRETTY_NAME=\"BusyBox\"\n"),
		file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
		file("etc/profile", 0o644, "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"),
		file("etc/resolv.conf", 0o644, "nameserver "+resolver+"\n"),
		file("etc/services", 0o644, "ssh\t22/tcp\ndomain\t53/tcp\ndomain\t53/udp\nhttp\t80/tcp\nhttps\t443/tcp\n"),
		file("etc/shells", 0o644, "/bin/sh\n/bin/ash\n"),
		file("etc/timezone", 0o644, "Etc/UTC\n"),
		file("usr/share/zoneinfo/UTC", 0o644, utc),
		link("var/run", "/run"),
	}
	known := map[string]bool{}
	for _, e := range entries {
		known[path.Clean(e.name)] = true
	}
	for _, applet := range applets {
		applet = path.Clean(applet)
		// An applet in a directory that this list lacks would have no parent.
		if known[applet] || !known[path.Dir(applet)] {
			continue
		}
		known[applet] = true
		entries = append(entries, link(applet, "/bin/busybox"))
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].name < entries[j].name })
	return entries
}
