// Package wire is the protocol between the node and envinit, pid 1 of every
// environment. It is shared by both sides and imports the standard library
// only, because envinit must stay small.
//
// One connection is one operation. It runs over a stream socket of AF_UNIX
// whose abstract name is SocketName, in the environment's network namespace.
// The node connects and sends one request frame; envinit answers with a reply
// or an error frame, and typed frames follow as the operation needs:
//
//	configure, ready, claimed,
//	status, stat, shutdown      → reply
//	exec    data* end signal* resize* hangup   → reply (data | stderr | window)* exit
//	read                        → reply data* end
//	write   data* end           → reply (again, with the size, after the rename)
//	list                        → entries* end
//	connect                     → reply, then raw bytes both ways until both closed
//
// A frame is one byte of kind, three bytes of length (big endian) and the
// payload. Payloads are at most MaxPayload bytes, a request at most MaxRequest.
//
// What never changes, whatever the version: the socket's name, the frame's
// layout, the kinds request, reply and error, and the JSON fields "version",
// "least" and "op" of a request and "code" and "message" of an error. An
// envinit lives as long as its environment, so a node speaks to older ones:
// a request names the newest and the least version that its sender can use,
// and envinit picks one or refuses with CodeVersion, naming its own.
//
// The package refuses what is too long, of unknown kind or malformed. Bytes
// from inside are the bytes of a stranger: the node checks each value again
// (internal/guest).
package wire
