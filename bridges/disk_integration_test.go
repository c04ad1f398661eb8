//go:build integration

package bridges_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// one is a Source of one service, and its Sink.
type one struct {
	mu       sync.Mutex // guards the fields below
	services []*model.Service
	change   chan struct{}
}

func (*one) Name() string { return "one" }
func (*one) Kind() string { return "test" }

func (o *one) Run(ctx context.Context, sink bridges.Sink) error {
	sink.Apply(model.Update{Full: true, Services: []*model.Service{{
		Host: "cart", Namespace: "default", Ports: []model.Port{{Number: 80, Protocol: model.HTTP}},
		Endpoints: []model.Endpoint{{Address: netip.MustParseAddrPort("10.0.0.1:8080"), Port: 80}},
	}}})
	sink.Report(model.SourceStatus{Phase: model.Live})
	<-ctx.Done()
	return nil
}

func (o *one) Apply(u model.Update) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.services = u.Services
}

func (o *one) Report(model.SourceStatus) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.change)
	o.change = make(chan struct{})
}

// TestAFullDiskIsShownAndLosesNothing fills a real, small file system.
func TestAFullDiskIsShownAndLosesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("isthmus-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("mounting a small file system needs root")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, bytes.Repeat([]byte{1}, 128<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v, want no space", err)
	}
	o := &one{change: make(chan struct{})}
	s, err := bridges.New(bridges.Config{Source: o, Sink: o, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	await := func(what string, ready func() bool) {
		t.Helper()
		limit := time.After(30 * time.Second)
		for {
			o.mu.Lock()
			change := o.change
			o.mu.Unlock()
			if ready() {
				return
			}
			select {
			case <-change:
			case <-limit:
				t.Fatalf("%s: not in time; status %+v, disk %v", what, s.Status(), s.DiskError())
			}
		}
	}
	await("the full disk shown", func() bool {
		return errors.Is(s.DiskError(), unix.ENOSPC) && s.Status().Phase == model.Live && len(s.Status().Skipped) == 1
	})
	o.mu.Lock()
	if len(o.services) != 1 {
		t.Errorf("held %v, want the service", o.services)
	}
	o.mu.Unlock()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files %v, %v, want the ballast alone", entries, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	await("well again", func() bool { return s.DiskError() == nil && len(s.Status().Skipped) == 0 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "one.snapshot")); err != nil || info.Size() == 0 {
		t.Errorf("the file: %v, %v", info, err)
	}
}
