// Package snapshot keeps what environments changed: it captures the writable
// directories of a running environment into a content-addressed store, and
// makes them again, exactly, wherever they are restored.
//
// The store is sharded by lineage, the chain of one environment's snapshots.
// A lineage is a directory with an owner file, packs of records, their indexes,
// references and a cache; there is no index, lock or collection over all of
// them, so nothing grows with the number of environments. It belongs to one
// tenant. A fork is a lineage of the same tenant that borrows its parent's
// packs; while it lives its parent cannot be deleted. After sixteen forks of
// forks the next one copies. Deleting a lineage removes its directory. Whoever
// reads waits for nobody; whoever changes a lineage, for others who change it.
//
// A file is cut into chunks (FastCDC with a secret table; 16, 64, 256 KiB), a
// directory into pages of entries, and each is a record named by the keyed hash
// of its content, stored once, compressed if that shrinks it. The keys are the
// lineage's own. A reference names
// the roots' pages and makes a snapshot: it is created once, after all it names
// is on stable storage. Every file has a format version, and a newer one is
// refused. Records are not encrypted yet; their header has the field for it.
//
// # A capture
//
// The tree is walked and read while the environment runs; then it is frozen,
// walked again, and what changed meanwhile is taken over: small files into
// memory, long ones cloned to a staging file, which is quick where the store is
// on the same file system and that has reflinks (XFS, btrfs), and a copy
// inside the freeze where not. Cutting, hashing, compressing and fsync come
// after the thaw. The whole walk is repeated in the freeze, so nothing that
// changed before it can be missed; that costs about 2 µs a name. The thaw
// happens on every path.
//
// A file is not read again if its size, times, inode and owner are those of
// the last time, and they can be trusted: they were read before the file was
// written back, that was done before it was read, and they were the same
// afterwards. Then a store through a shared mapping takes a page fault, which
// moves the ctime; without the write-back it would not. Times younger than two
// ticks, and all times of file systems where stores through mappings do not
// move them (tmpfs), are not trusted: such entries are racy, counted, and read
// again by the next capture.
//
// # Between stores
//
// Export writes one snapshot as a stream: the records that it names, wherever
// they lie, its reference, and the lineage's secret, without which names can be
// neither checked nor continued. Import believes none of it: see there. What is
// known of files' times stays behind, since it is of another node's files.
//
// # What is kept
//
// Names of any bytes, modes, owners, nanosecond modification times, symbolic
// and hard links, devices (whiteouts among them), fifos, holes, and the
// attributes user.*, security.capability, POSIX ACLs, trusted.overlay.opaque
// and .whiteout. Ids, also those in capabilities and ACLs, are recorded as the
// environment sees them and shifted at capture and restore; an id outside its
// range is recorded as 65534, as it sees that, and counted. Not kept: times of
// access, sockets, other attributes (all counted), inode flags.
//
// # What it refuses
//
// Overlay redirects and metadata-only copies, whose content lies elsewhere;
// trees beyond the limits of Config; a file that changes in the freeze, or is
// held by a lease; another tenant than the lineage's; a
// target that is not empty or is the upper directory of a mounted overlay; a
// second process on the store; and to go on from an older snapshot when the
// newest cannot be read. Damage is env.ErrCorrupt and names pack, record and
// file.
//
// The trees belong to hostile roots: they are walked by descriptors beneath
// their root, no link is followed, no mount entered, no device or fifo opened.
package snapshot
