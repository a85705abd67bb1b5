package snapshot

import (
	"encoding/binary"
	"fmt"

	"hearth/internal/env"
)

// overflowID is what an environment sees for an id outside its range
// (/proc/sys/kernel/overflowuid), and so what is recorded for one.
const overflowID = 65534

// idMap shifts ids between the host and the environment.
type idMap env.IDRange

// in is the id as the environment sees it; ok is false if it is outside.
func (m idMap) in(host uint32) (id uint32, ok bool) {
	switch {
	case m.Size == 0:
		return host, host != 1<<32-1
	case host < m.Base || host-m.Base >= m.Size:
		return overflowID, false
	}
	return host - m.Base, true
}

// out is the host's id of one that the environment sees.
func (m idMap) out(id uint32) (uint32, error) {
	if m.Size == 0 {
		return id, nil
	}
	if id >= m.Size {
		return 0, fmt.Errorf("%w: id %d is outside the environment's range of %d ids", env.ErrInvalid, id, m.Size)
	}
	return m.Base + id, nil
}

const (
	xattrCaps       = "security.capability"
	xattrACLAccess  = "system.posix_acl_access"
	xattrACLDefault = "system.posix_acl_default"

	// Linux include/uapi/linux/capability.h.
	capRevisionMask = 0xff000000
	capRevision2    = 0x02000000
	capRevision3    = 0x03000000
	capLen2         = 20
	capLen3         = 24

	// Linux include/uapi/linux/posix_acl_xattr.h.
	aclVersion  = 2
	aclEntryLen = 8
	aclUser     = 0x02
	aclGroup    = 0x08
)

// shiftCaps moves the root id of file capabilities. Revision 2 belongs to the
// host's root: an environment with its own ids sees those of its own root, so
// they become revision 3. A root id that move refuses is an error.
func (m idMap) shiftCaps(v []byte, move func(uint32) (uint32, error)) ([]byte, error) {
	if len(v) < 4 {
		return nil, fmt.Errorf("%w: file capabilities of %d bytes", env.ErrCorrupt, len(v))
	}
	head := binary.LittleEndian.Uint32(v)
	switch {
	case head&capRevisionMask == capRevision2 && len(v) == capLen2:
		return v, nil
	case head&capRevisionMask == capRevision3 && len(v) == capLen3:
		id, err := move(binary.LittleEndian.Uint32(v[capLen2:]))
		if err != nil {
			return nil, err
		}
		out := append([]byte(nil), v...)
		binary.LittleEndian.PutUint32(out[capLen2:], id)
		return out, nil
	}
	return nil, fmt.Errorf("%w: file capabilities of revision %#x and %d bytes", env.ErrUnsupported, head>>24, len(v))
}

// capsOfOwnRoot turns revision 2 into revision 3 with the root id 0 of the
// environment.
func capsOfOwnRoot(v []byte) []byte {
	head := binary.LittleEndian.Uint32(v)
	out := append([]byte(nil), v...)
	binary.LittleEndian.PutUint32(out, head&^uint32(capRevisionMask)|capRevision3)
	return append(out, 0, 0, 0, 0)
}

// shiftACL moves the ids that a POSIX ACL names.
func shiftACL(v []byte, move func(uint32) (uint32, error)) ([]byte, error) {
	if len(v) < 4 || (len(v)-4)%aclEntryLen != 0 || binary.LittleEndian.Uint32(v) != aclVersion {
		return nil, fmt.Errorf("%w: ACL of %d bytes", env.ErrUnsupported, len(v))
	}
	out := append([]byte(nil), v...)
	for e := out[4:]; len(e) > 0; e = e[aclEntryLen:] {
		if tag := binary.LittleEndian.Uint16(e); tag != aclUser && tag != aclGroup {
			continue
		}
		id, err := move(binary.LittleEndian.Uint32(e[4:]))
		if err != nil {
			return nil, err
		}
		binary.LittleEndian.PutUint32(e[4:], id)
	}
	return out, nil
}

// xattrIn is a host's attribute as the environment sees it, and how many
// foreign ids it had.
func (m idMap) xattrIn(x xattr) (xattr, int64, error) {
	var foreign int64
	move := func(host uint32) (uint32, error) {
		id, ok := m.in(host)
		if !ok {
			foreign++
		}
		return id, nil
	}
	var v []byte
	var err error
	switch x.name {
	case xattrCaps:
		if v, err = m.shiftCaps([]byte(x.value), move); err == nil && m.Size > 0 && len(v) == capLen2 {
			v = capsOfOwnRoot(v)
		}
	case xattrACLAccess, xattrACLDefault:
		v, err = shiftACL([]byte(x.value), move)
	default:
		return x, 0, nil
	}
	return xattr{x.name, string(v)}, foreign, err
}

// xattrOut is an environment's attribute as the host must write it.
func (m idMap) xattrOut(x xattr) (string, error) {
	var v []byte
	var err error
	switch x.name {
	case xattrCaps:
		v, err = m.shiftCaps([]byte(x.value), m.out)
		if err == nil && m.Size > 0 && len(v) == capLen2 { // of a capture without a range, or forged
			v, err = m.shiftCaps(capsOfOwnRoot(v), m.out)
		}
	case xattrACLAccess, xattrACLDefault:
		v, err = shiftACL([]byte(x.value), m.out)
	default:
		return x.value, nil
	}
	return string(v), err
}

// keepXattr says whether an attribute is part of a snapshot, or an error if
// leaving it out would change what the environment sees.
func keepXattr(name string) (bool, error) {
	switch name {
	case xattrCaps, xattrACLAccess, xattrACLDefault, "trusted.overlay.opaque", "trusted.overlay.whiteout":
		return true, nil
	case "trusted.overlay.redirect", "trusted.overlay.metacopy":
		return false, fmt.Errorf("%w: overlay attribute %s: the content lies in a lower layer; mount with redirect_dir=off,metacopy=off",
			env.ErrUnsupported, name)
	}
	return len(name) > 5 && name[:5] == "user.", nil
}
