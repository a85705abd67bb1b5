// Package durable changes files so that a crash at any moment leaves either
// the old state or the new one, and makes every step of a change nameable.
//
// A Dir is a directory of our own. Whole files are replaced by temp, fsync,
// rename, fsync of the directory; a Log is an append-only file of framed and
// checksummed records. Each changing call takes an operation's name, op, and
// runs its steps under "<op>:<step>": a Fault, nil in production, is called
// before each of them, so that a test fails or kills exactly that one.
//
// Steps: a replaced or created file has write, sync, rename (link where it must
// not exist yet) and syncdir; a removal has remove and syncdir, of a whole tree
// rename, syncdir and remove; an append has write, and truncate if it must be
// undone; a log's sync has sync. RemoveAll has none: it is for trees that nobody
// needs any more, of which a crash may leave any part.
//
// Invariants: a name that List shows is complete. What a call acknowledged
// without an error is on stable storage, except a Log's Append, which is in the
// kernel only (it survives the process, not the machine) until Sync. A file or
// log whose fsync failed is not written again: the kernel may have dropped the
// dirty pages and cleared the error.
//
// The package refuses names with more than one element, records over 1 MiB,
// logs over 256 MiB, directories that other users may write, and a log that
// is damaged anywhere but at its end.
package durable
