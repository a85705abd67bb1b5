// Package flow puts the first bytes of flows together from captured segments.
//
// It is a pure core: no clock, no I/O; segments go in, prefixes come out. A
// stream is one direction of one flow. Bytes are placed by TCP sequence
// number, modulo 2^32, from the stream's first byte on, at most Cap of them.
// The first byte seen at a place stays: a retransmission changes nothing, and
// one with other content is a conflict, which is remembered. A UDP datagram is
// a prefix of its own.
//
// Memory is bounded three ways: bytes of a stream (Cap), flows of one
// environment, flows of the table. A full environment gives up its own oldest
// flow; a full table takes the oldest flow of the environment that has most.
package flow
