package boltstore

import (
	"errors"
	"maps"
	"time"

	bolt "go.etcd.io/bbolt"

	"hearth/internal/env"
	"hearth/internal/fleet"
)

// write has w written together with all who come meanwhile. Whoever finds nobody
// writing writes for all that wait, and hands over to the first of those that came
// during that.
func (s *Store) write(w *save) error {
	s.mu.Lock()
	s.waiting = append(s.waiting, w)
	if s.writing {
		s.mu.Unlock()
		<-w.done
		if !w.lead {
			return w.err
		}
		s.mu.Lock()
	}
	s.writing = true
	batch, posts := s.waiting, s.posted
	s.waiting, s.posted = nil, map[env.ID]edit{}
	s.mu.Unlock()

	err := s.commit(batch, posts)

	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.keepPosts(posts)
	}
	for _, b := range batch {
		if b != w {
			b.err = err
			close(b.done)
		}
	}
	s.writing = len(s.waiting) > 0
	if s.writing {
		next := s.waiting[0]
		next.lead = true
		close(next.done)
	}
	return err
}

// keepPosts puts back what could not be written, unless it is older than what has
// come since. The caller holds mu.
func (s *Store) keepPosts(posts map[env.ID]edit) {
	for _, w := range s.waiting {
		delete(posts, w.id)
	}
	maps.Copy(posts, s.posted)
	s.posted = posts
	if len(posts) > 0 && s.timer == nil && !s.closed {
		s.work.Add(1)
		s.timer = time.AfterFunc(postDelay, s.flush)
	}
}

func (s *Store) commit(batch []*save, posts map[env.ID]edit) error {
	if len(posts) == 0 && len(batch) == 1 && batch[0].edit.bucket == nil {
		return nil
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		for _, e := range posts {
			if err := e.apply(tx); err != nil {
				return err
			}
		}
		// Saves come after: they are later than the posts of their records.
		for _, w := range batch {
			if err := w.edit.apply(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

func (e edit) apply(tx *bolt.Tx) error {
	switch {
	case e.bucket == nil:
		return nil
	case e.value == nil:
		return tx.Bucket(e.bucket).Delete(e.key)
	default:
		return tx.Bucket(e.bucket).Put(e.key, e.value)
	}
}

func encode(c fleet.Change) (e edit, err error) {
	if err := c.Validate(); err != nil {
		return edit{}, err
	}
	switch {
	case c.Record != nil:
		e = edit{bucket: recordBucket, key: []byte(c.Record.ID())}
		e.value, err = fleet.EncodeRecord(c.Record)
	case c.DeleteRecord != "":
		e = edit{bucket: recordBucket, key: []byte(c.DeleteRecord)}
	case c.APIKey != nil:
		e = edit{bucket: apiKeyBucket, key: []byte(c.APIKey.ID)}
		e.value, err = fleet.EncodeAPIKey(*c.APIKey)
	case c.DeleteAPIKey != "":
		e = edit{bucket: apiKeyBucket, key: []byte(c.DeleteAPIKey)}
	case c.JoinToken != nil:
		e = edit{bucket: joinBucket, key: c.JoinToken.Hash[:]}
		e.value, err = fleet.EncodeJoinToken(*c.JoinToken)
	case c.DeleteJoinToken != nil:
		e = edit{bucket: joinBucket, key: c.DeleteJoinToken[:]}
	default:
		err = errors.New("nothing to write")
	}
	return e, err
}
