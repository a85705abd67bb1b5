package rpc

import (
	"context"
	"errors"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func TestARetiredServerKeepsItsStreamsAndTakesNoNewConnections(t *testing.T) {
	s := newService(t, nil)
	old := s.unixClient(t)
	stream, err := old.Detections(t.Context(), &hearthv1.DetectionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	<-s.opened
	s.server.Retire()
	fresh := s.unixClient(t)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := fresh.get(t.Context()); errors.Is(err, env.ErrUnavailable) {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("a new connection's call = %v, want ErrUnavailable", err)
		}
	}
	if !stream.Receive() {
		t.Errorf("the stream's first message: %v", stream.Err())
	}
	select {
	case err := <-s.ended:
		t.Errorf("the stream ended: %v", err)
	case <-time.After(1500 * time.Millisecond): // longer than HTTP/2's own patience
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	<-s.ended
}

func TestASuccessorReplacesAServedSocket(t *testing.T) {
	s := newService(t, nil)
	old := s.unixClient(t)
	if err := old.get(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(s.socket); !errors.Is(err, env.ErrExists) {
		t.Fatalf("listen beside = %v, want ErrExists", err)
	}
	l, err := ReplaceUnix(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	next := newService(t, l)
	next.fail = env.ErrNotFound
	if err := old.get(t.Context()); err != nil {
		t.Errorf("the predecessor's connection: %v", err)
	}
	if err := s.unixClient(t).get(t.Context()); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("a new connection = %v, want the successor's answer", err)
	}
}
