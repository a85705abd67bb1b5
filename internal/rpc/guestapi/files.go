package guestapi

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/guest"
)

// chunk is how much of a file one message carries, in bytes.
const chunk = 64 << 10

// maxPage bounds a page of a directory, in bytes of names and links, so that
// it fits a message.
const maxPage = 1 << 20

func fileInfo(i guest.FileInfo) *hearthv1.FileInfo {
	return &hearthv1.FileInfo{
		Name: encodeName(i.Name), Size: uint64(i.Size), Mode: i.Mode, Uid: i.UID, Gid: i.GID,
		Modified: timestamppb.New(i.Modified), LinkTarget: encodeName(i.Target),
	}
}

// ReadFile implements hearthv1connect.GuestServiceHandler.
func (s *Service) ReadFile(ctx context.Context, req *hearthv1.ReadFileRequest, stream *connect.ServerStream[hearthv1.ReadFileResponse]) error {
	session, leave, err := s.session(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if req.GetOffset() > math.MaxInt64 || req.GetLimit() > math.MaxInt64 {
		return fmt.Errorf("%w: offset %d or limit %d is larger than a file can be", env.ErrInvalid, req.GetOffset(), req.GetLimit())
	}
	done, err := session.use(ctx)
	if err != nil {
		return err
	}
	defer done()
	f, err := session.Guest.ReadFile(ctx, decodePath(req.GetPath()), int64(req.GetOffset()), int64(req.GetLimit()))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := stream.Send(&hearthv1.ReadFileResponse{Info: fileInfo(f.Info)}); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if err := stream.Send(&hearthv1.ReadFileResponse{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// WriteFile implements hearthv1connect.GuestServiceHandler.
func (s *Service) WriteFile(ctx context.Context, stream *connect.ClientStream[hearthv1.WriteFileRequest]) (*hearthv1.WriteFileResponse, error) {
	session, leave, err := s.session(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if !stream.Receive() {
		return nil, fmt.Errorf("%w: the first message of a write must be open: %w", env.ErrInvalid, orEOF(stream.Err()))
	}
	open := stream.Msg().GetOpen()
	if open == nil {
		return nil, fmt.Errorf("%w: the first message of a write must be open", env.ErrInvalid)
	}
	o := guest.WriteOptions{
		Path: decodePath(open.GetPath()), Mode: open.GetMode(), UID: open.GetUid(), GID: open.GetGid(),
		Parents: open.GetParents(),
	}
	done, err := session.use(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	size, err := session.Guest.WriteFile(ctx, o, &content{stream: stream, left: stream.Msg().GetData()})
	if err != nil {
		return nil, err
	}
	return &hearthv1.WriteFileResponse{Size: uint64(size)}, nil
}

func orEOF(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// writeStream is connect's, as far as it is used.
type writeStream interface {
	Receive() bool
	Msg() *hearthv1.WriteFileRequest
	Err() error
}

// content reads a file from its messages. A stream that broke is an error and
// not the file's end.
type content struct {
	stream writeStream
	left   []byte
}

func (c *content) Read(b []byte) (int, error) {
	for len(c.left) == 0 {
		if !c.stream.Receive() {
			return 0, orEOF(c.stream.Err())
		}
		if c.stream.Msg().GetOpen() != nil {
			return 0, fmt.Errorf("%w: only the first message of a write may be open", env.ErrInvalid)
		}
		c.left = c.stream.Msg().GetData()
	}
	n := copy(b, c.left)
	c.left = c.left[n:]
	return n, nil
}

// ListDir implements hearthv1connect.GuestServiceHandler. A page token is the
// last name of the page before.
func (s *Service) ListDir(ctx context.Context, req *hearthv1.ListDirRequest) (*hearthv1.ListDirResponse, error) {
	session, leave, err := s.session(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	after, err := base64.RawURLEncoding.DecodeString(req.GetPageToken())
	if err != nil || len(after) > 255 {
		return nil, fmt.Errorf("%w: page token %.64q is not one of ours", env.ErrInvalid, req.GetPageToken())
	}
	done, err := session.use(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	page, err := session.Guest.ListDir(ctx, decodePath(req.GetPath()), string(after), 0)
	if err != nil {
		return nil, err
	}
	return pageOf(page), nil
}

func pageOf(page guest.Page) *hearthv1.ListDirResponse {
	res := new(hearthv1.ListDirResponse)
	size := 0
	for i, e := range page.Entries {
		res.Entries = append(res.Entries, fileInfo(e))
		size += 64 + len(e.Name) + len(e.Target)
		if last := i == len(page.Entries)-1; size > maxPage && !last || last && page.More {
			res.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(e.Name))
			break
		}
	}
	return res
}
