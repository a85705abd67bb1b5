// Package guesttest proves that the VM is what the kernel tests count on. It
// runs nowhere else: on a machine with another cgroup layout it would say so.
package guesttest
