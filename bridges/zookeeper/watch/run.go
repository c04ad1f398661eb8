package watch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/bridges"
)

// Run follows the registry until the session ends and returns why, or nil when
// ctx ended it. It deletes only what it read as gone. Runs of one registry share
// memory.
func Run(ctx context.Context, cfg Config, memory *Memory, sink bridges.Sink) error {
	s, err := connect(ctx, cfg)
	if err != nil {
		return ended(ctx, fmt.Errorf("connect to zookeeper: %w", err))
	}
	defer s.close()
	if err := s.prepare(ctx, cfg.Chroot); err != nil {
		return ended(ctx, err)
	}
	return ended(ctx, s.follow(ctx, newFollower(cfg, s, memory, sink)))
}

// ended is nil when ctx ended the run.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// prepare makes sure that what follows is read from a server that has caught up
// with its leader, and that the chroot is there: a follower that lags, and a
// mistyped or not yet restored chroot, answer with less than there is.
func (s *session) prepare(ctx context.Context, chroot string) error {
	stop := context.AfterFunc(ctx, s.hangUp)
	defer stop()
	path := chroot
	if path == "" {
		path = "/"
	}
	if _, err := s.Sync(path); err != nil {
		return fmt.Errorf("sync with the leader: %w", s.why(err))
	}
	there, _, err := s.Exists(path)
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, s.why(err))
	}
	if !there {
		return fmt.Errorf("chroot %s does not exist", path)
	}
	return nil
}

// follow serves f until the session is over or ctx ends.
func (s *session) follow(ctx context.Context, f *follower) error {
	beat := time.NewTicker(s.timeout / 3)
	defer beat.Stop()
	pulse := make(chan time.Time, 1) // answered heartbeats, by when they were sent
	answered, beating := time.Now(), false
	defer func() {
		s.close() // ends the requests under way
		for ; f.reads > 0; f.reads-- {
			<-f.readings
		}
		if beating {
			<-pulse
		}
	}()
	for {
		now := time.Now()
		f.start(now)
		f.status(ctx, now)
		select {
		case <-ctx.Done():
			return nil
		case <-s.over:
			return s.why(nil)
		case r := <-f.readings:
			if lost(r.err) {
				f.reads--
				return s.why(r.err)
			}
			f.take(r, time.Now())
		case <-s.wake:
			f.changed(s.take(), time.Now())
		case <-f.timer():
		case sent := <-pulse:
			answered, beating = time.Now(), false
			if f.live && f.reads == 0 && !sent.IsZero() {
				f.read = sent
			}
		case now := <-beat.C:
			if beating && now.Sub(answered) > s.timeout {
				return fmt.Errorf("no answer from %s for %v", s.Server(), s.timeout)
			}
			if !beating {
				beating = true
				go func() { pulse <- s.heartbeat(now) }()
			}
		}
	}
}

// heartbeat asks the server for something small. Its answer proves the connection
// and, answers being in order, that all events up to sent have arrived. It
// returns the zero time if there was none.
func (s *session) heartbeat(sent time.Time) time.Time {
	if _, _, err := s.Exists("/"); err != nil {
		return time.Time{}
	}
	return sent
}

// lost reports whether err is about the connection rather than about a node.
func lost(err error) bool {
	return errors.Is(err, zk.ErrConnectionClosed) || errors.Is(err, zk.ErrClosing) || errors.Is(err, zk.ErrSessionExpired) ||
		errors.Is(err, zk.ErrSessionMoved) || errors.Is(err, zk.ErrNoServer)
}
