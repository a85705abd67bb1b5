package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"hearth/internal/env"
	"hearth/internal/guest/wire"
)

// Bounds of Linux: PATH_MAX and NAME_MAX.
const (
	maxPath = 4096
	maxName = 255
)

// FileInfo describes a file inside. Name and Target are raw bytes of the
// environment, not text.
type FileInfo struct {
	Name     string // the last element; no slash in it
	Size     int64
	Mode     uint32 // st_mode, type bits included
	UID, GID uint32 // as inside
	Modified time.Time
	Target   string // of a symbolic link
}

// WriteOptions says how a file is made.
type WriteOptions struct {
	Path     string
	Mode     uint32 // permission bits; 0 is 0644
	UID, GID uint32
	Parents  bool // make missing directories
}

// maxPage bounds what is held of a directory at once, in bytes of names and links:
// ten thousand links may name forty megabytes.
const maxPage = 1 << 20

// entrySize is what an entry has beside its name and link, in bytes.
const entrySize = 64

// Page is a part of a directory, sorted by the bytes of the names.
type Page struct {
	Entries []FileInfo
	More    bool // ask again after the last name
}

func checkPath(op wire.Op, path string) error {
	switch {
	case len(path) == 0 || path[0] != '/':
		return fmt.Errorf("%w: %s: path %.128q is not absolute", env.ErrInvalid, op, path)
	case len(path) >= maxPath:
		return fmt.Errorf("%w: %s: path has %d bytes, at most %d are possible", env.ErrInvalid, op, len(path), maxPath-1)
	case bytes.IndexByte([]byte(path), 0) >= 0:
		return fmt.Errorf("%w: %s: path holds a zero byte", env.ErrInvalid, op)
	}
	return nil
}

// Stat describes a file; a symbolic link itself, not what it names.
func (c *Client) Stat(ctx context.Context, path string) (FileInfo, error) {
	if err := checkPath(wire.OpStat, path); err != nil {
		return FileInfo{}, err
	}
	cl, err := c.open(ctx, wire.Request{Op: wire.OpStat, Stat: &wire.Stat{Path: []byte(path)}}, idleTimeout)
	if err != nil {
		return FileInfo{}, err
	}
	defer cl.close()
	var reply wire.StatReply
	if err := cl.expect(wire.KindReply, &reply); err != nil {
		return FileInfo{}, err
	}
	return cl.fileInfo(reply.Info)
}

// fileInfo checks a description from inside.
func (cl *call) fileInfo(w wire.FileInfo) (FileInfo, error) {
	if len(w.Name) == 0 || len(w.Name) > maxName || bytes.ContainsAny(w.Name, "\x00") ||
		bytes.IndexByte(w.Name, '/') >= 0 && len(w.Name) > 1 {
		return FileInfo{}, cl.lie("%.300q is not a file's name", w.Name)
	}
	if w.Size < 0 || len(w.Target) > maxPath {
		return FileInfo{}, cl.lie("size %d, link of %d bytes", w.Size, len(w.Target))
	}
	return FileInfo{
		Name: string(w.Name), Size: w.Size, Mode: w.Mode, UID: w.UID, GID: w.GID,
		Modified: time.Unix(0, w.Modified), Target: string(w.Target),
	}, nil
}

// ListDir returns up to limit entries (0 and anything above is
// wire.MaxEntries) whose names sort after the given one; fewer if they are long.
func (c *Client) ListDir(ctx context.Context, path, after string, limit int) (Page, error) {
	if err := checkPath(wire.OpList, path); err != nil {
		return Page{}, err
	}
	if limit <= 0 || limit > wire.MaxEntries {
		limit = wire.MaxEntries
	}
	req := wire.Request{Op: wire.OpList, List: &wire.List{Path: []byte(path), After: []byte(after), Limit: limit}}
	cl, err := c.open(ctx, req, idleTimeout)
	if err != nil {
		return Page{}, err
	}
	defer cl.close()
	return cl.readPage(after, limit)
}

func (cl *call) readPage(after string, limit int) (Page, error) {
	var page Page
	last, size := after, 0
	for {
		_ = cl.conn.SetReadDeadline(time.Now().Add(idleTimeout))
		f, err := cl.next()
		if err != nil {
			return Page{}, err
		}
		switch f.Kind {
		case wire.KindEnd:
			var end wire.End
			if err := f.Decode(&end); err != nil {
				return Page{}, cl.lie("%v", err)
			}
			// More without an entry would make the caller ask for ever.
			page.More = end.More && len(page.Entries) > 0
			return page, nil
		case wire.KindEntries:
			var entries []wire.FileInfo
			if err := f.Decode(&entries); err != nil {
				return Page{}, cl.lie("%v", err)
			}
			if len(entries) == 0 || len(page.Entries)+len(entries) > limit {
				return Page{}, cl.lie("%d entries where at most %d were asked", len(page.Entries)+len(entries), limit)
			}
			for _, w := range entries {
				info, err := cl.fileInfo(w)
				if err != nil {
					return Page{}, err
				}
				if info.Name <= last {
					return Page{}, cl.lie("entry %.300q is not sorted after %.300q", info.Name, last)
				}
				last, size = info.Name, size+entrySize+len(info.Name)+len(info.Target)
				page.Entries = append(page.Entries, info)
			}
			if size > maxPage {
				page.More = true // as far as is known
				return page, nil
			}
		default:
			return Page{}, cl.lie("frame of kind %d in a directory", f.Kind)
		}
	}
}

// FileReader streams a file's content. Close it in any case.
type FileReader struct {
	Info FileInfo // when it was opened

	call *call
	left []byte
	most int64 // what may still come; -1 is no limit
	err  error
}

// ReadFile opens a regular file, following links. limit 0 is to the end,
// wherever that is when it is reached.
func (c *Client) ReadFile(ctx context.Context, path string, offset, limit int64) (*FileReader, error) {
	if err := checkPath(wire.OpRead, path); err != nil {
		return nil, err
	}
	if offset < 0 || limit < 0 {
		return nil, fmt.Errorf("%w: read: offset %d and limit %d must not be negative", env.ErrInvalid, offset, limit)
	}
	req := wire.Request{Op: wire.OpRead, Read: &wire.Read{Path: []byte(path), Offset: offset, Limit: limit}}
	cl, err := c.open(ctx, req, idleTimeout)
	if err != nil {
		return nil, err
	}
	var reply wire.StatReply
	if err := cl.expect(wire.KindReply, &reply); err != nil {
		cl.close()
		return nil, err
	}
	info, err := cl.fileInfo(reply.Info)
	if err != nil {
		cl.close()
		return nil, err
	}
	if limit == 0 {
		limit = -1
	}
	return &FileReader{Info: info, call: cl, most: limit}, nil
}

// Read implements io.Reader.
func (r *FileReader) Read(b []byte) (int, error) {
	for len(r.left) == 0 && r.err == nil {
		r.left, r.err = r.fetch()
	}
	if len(r.left) > 0 {
		n := copy(b, r.left)
		r.left = r.left[n:]
		return n, nil
	}
	return 0, r.err
}

func (r *FileReader) fetch() ([]byte, error) {
	_ = r.call.conn.SetReadDeadline(time.Now().Add(idleTimeout))
	f, err := r.call.next()
	switch {
	case err != nil:
		return nil, err
	case f.Kind == wire.KindEnd:
		return nil, io.EOF
	case f.Kind != wire.KindData:
		return nil, r.call.lie("frame of kind %d in a file", f.Kind)
	case r.most >= 0 && int64(len(f.Payload)) > r.most:
		return nil, r.call.lie("more content than was asked")
	}
	if r.most >= 0 {
		r.most -= int64(len(f.Payload))
	}
	return f.Payload, nil
}

// Close ends the reading.
func (r *FileReader) Close() error {
	r.call.close()
	return nil
}

// WriteFile replaces a file by what content holds, by temporary file and
// rename: others see the old file or the new one. A symbolic link at the path
// is replaced, not followed. If content fails nothing changes, and its error
// is returned. The result is the size written.
func (c *Client) WriteFile(ctx context.Context, o WriteOptions, content io.Reader) (int64, error) {
	if err := checkPath(wire.OpWrite, o.Path); err != nil {
		return 0, err
	}
	if o.Mode&^0o7777 != 0 {
		return 0, fmt.Errorf("%w: write: mode %#o has bits beyond 07777", env.ErrInvalid, o.Mode)
	}
	req := wire.Request{Op: wire.OpWrite, Write: &wire.Write{
		Path: []byte(o.Path), Mode: o.Mode, UID: o.UID, GID: o.GID, Parents: o.Parents,
	}}
	cl, err := c.open(ctx, req, idleTimeout)
	if err != nil {
		return 0, err
	}
	defer cl.close()
	var reply wire.WriteReply
	if err := cl.expect(wire.KindReply, &reply); err != nil {
		return 0, err
	}
	size, err := cl.sendContent(content)
	if err != nil {
		return 0, err
	}
	_ = cl.conn.SetDeadline(time.Now().Add(idleTimeout))
	if err := cl.expect(wire.KindReply, &reply); err != nil {
		return 0, err
	}
	if reply.Size != size {
		return 0, cl.lie("%d bytes were sent, %d are said to be written", size, reply.Size)
	}
	return size, nil
}

func (cl *call) sendContent(content io.Reader) (int64, error) {
	buf := make([]byte, wire.MaxPayload)
	var size int64
	for {
		n, err := content.Read(buf)
		if n > 0 {
			if err := cl.sendPart(wire.KindData, buf[:n]); err != nil {
				return 0, err
			}
			size += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return size, cl.sendPart(wire.KindEnd, nil)
		}
		if err != nil {
			return 0, fmt.Errorf("read content to write: %w", err)
		}
	}
}

// sendPart sends one frame of a file. If envinit gave up meanwhile (a full
// disk), its reason goes before the broken pipe.
func (cl *call) sendPart(kind wire.Kind, b []byte) error {
	_ = cl.conn.SetDeadline(time.Now().Add(idleTimeout))
	err := cl.out.Send(kind, b)
	if err == nil {
		return nil
	}
	if f, rerr := cl.in.Next(); rerr == nil && f.Kind == wire.KindError {
		return cl.remote(f)
	}
	return cl.fault(err)
}
