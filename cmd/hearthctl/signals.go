package main

import (
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
)

// catcher routes the signals of this process to one handler at a time: to the
// running command while there is one, and before and after it to whoever has to
// clean up. No signal ends the process between two handlers.
type catcher struct {
	handler atomic.Pointer[func(syscall.Signal)]
}

// catch begins with the handler first. The returned function ends it and gives
// the signals back their usual effect.
func catch(first func(syscall.Signal)) (c *catcher, stop func()) {
	c = &catcher{}
	c.handler.Store(&first)
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case s := <-sigs:
				if n, ok := s.(syscall.Signal); ok {
					(*c.handler.Load())(n)
				}
			case <-quit:
				return
			}
		}
	}()
	return c, func() { signal.Stop(sigs); close(quit); <-done }
}

// with replaces the handler; the returned function puts the former one back.
// A handler must not block.
func (c *catcher) with(h func(syscall.Signal)) (restore func()) {
	old := c.handler.Swap(&h)
	return func() { c.handler.Store(old) }
}

// endsUs reports whether a signal asks this process to end.
func endsUs(s syscall.Signal) bool {
	switch s {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT:
		return true
	default:
		return false
	}
}

// linuxNumber is a signal's number inside the environment, which is Linux
// whatever this machine is (signal(7)).
func linuxNumber(s syscall.Signal) uint32 {
	switch s {
	case syscall.SIGUSR1:
		return 10
	case syscall.SIGUSR2:
		return 12
	default:
		return uint32(s) // HUP, INT, QUIT and TERM are the same everywhere
	}
}
