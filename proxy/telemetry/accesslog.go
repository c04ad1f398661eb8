package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Format is the form of a line.
type Format uint8

// Formats of the access log.
const (
	Text Format = iota // Envoy's default, with the fields that Istio adds
	JSON               // one object a line
)

// String returns the name.
func (f Format) String() string {
	if f == JSON {
		return "json"
	}
	return "text"
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Format) UnmarshalText(text []byte) error {
	switch strings.ToLower(string(text)) {
	case "text":
		*f = Text
	case "json":
		*f = JSON
	default:
		return fmt.Errorf("format %q, want text or json", text)
	}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (f Format) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// AccessLogConfig says where lines go.
type AccessLogConfig struct {
	// Open opens the destination; it is called at the start of Run, on Reopen
	// and, with a pause, after a failed write. Required.
	Open   func() (io.WriteCloser, error)
	Format Format
	// HostName is the field host.name of JSON lines; may be empty.
	HostName string
	// BufferBytes bounds what waits to be written; lines that do not fit are
	// dropped and counted. 0 means 4 MiB.
	BufferBytes int
	// Delay is how long lines may wait to be written together; 0 means 50 ms.
	Delay time.Duration
	Log   *slog.Logger // required
}

// Defaults of AccessLogConfig, and how soon a failed destination is tried again.
const (
	defaultLogBytes = 4 << 20
	defaultLogDelay = 50 * time.Millisecond
	reopenPause     = time.Second
)

// AccessLog writes a line a request. Log formats into memory; one goroutine,
// Run, writes. Any goroutine may call Log and Reopen.
type AccessLog struct {
	cfg     AccessLogConfig
	mask    uint32
	shards  []logShard
	wake    chan struct{} // capacity 1: something is there
	reopen  chan struct{} // capacity 1
	dropped atomic.Int64
	written atomic.Int64
	pending atomic.Bool // a wake-up was sent and not consumed
}

// logShard is a pair of buffers: callers fill one while Run writes the other.
type logShard struct {
	mu    sync.Mutex // guards the fields below
	fill  []byte
	lines int64
	clock clockCache
	_     [64]byte
}

// NewAccessLog checks cfg.
func NewAccessLog(cfg AccessLogConfig) (*AccessLog, error) {
	var errs []error
	if cfg.Open == nil {
		errs = append(errs, errors.New("access log: Open is missing"))
	}
	if cfg.Log == nil {
		errs = append(errs, errors.New("access log: Log is missing"))
	}
	if cfg.BufferBytes < 0 || cfg.Delay < 0 {
		errs = append(errs, errors.New("access log: BufferBytes and Delay must not be negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.BufferBytes == 0 {
		cfg.BufferBytes = defaultLogBytes
	}
	if cfg.Delay == 0 {
		cfg.Delay = defaultLogDelay
	}
	n := Shards()
	return &AccessLog{
		cfg:    cfg,
		mask:   uint32(n - 1),
		shards: make([]logShard, n),
		wake:   make(chan struct{}, 1),
		reopen: make(chan struct{}, 1),
	}, nil
}

// Log formats e. It returns at once; e is not kept.
func (l *AccessLog) Log(shard uint32, e *Entry) {
	s := &l.shards[shard&l.mask]
	limit := l.cfg.BufferBytes / len(l.shards) / 2
	s.mu.Lock()
	before := len(s.fill)
	if l.cfg.Format == JSON {
		s.fill = appendObject(s.fill, &s.clock, l.cfg.HostName, e)
	} else {
		s.fill = appendText(s.fill, &s.clock, e)
	}
	full := len(s.fill) > limit
	if full {
		s.fill = s.fill[:before]
	} else {
		s.lines++
	}
	s.mu.Unlock()
	if full {
		l.dropped.Add(1)
	}
	if !l.pending.Load() && l.pending.CompareAndSwap(false, true) {
		l.wake <- struct{}{} // capacity 1, and only who set pending sends
	}
}

// Dropped is the number of lines lost because the destination did not keep up
// or could not be written.
func (l *AccessLog) Dropped() int64 { return l.dropped.Load() }

// Written is the number of lines that were written.
func (l *AccessLog) Written() int64 { return l.written.Load() }

// Reopen makes Run open the destination anew before it writes the next line, as
// is wanted after a file was rotated.
func (l *AccessLog) Reopen() {
	select {
	case l.reopen <- struct{}{}: // capacity 1
	default: // one is asked for already
	}
}

// Run writes until ctx ends, and then what is left. It returns an error only if
// the destination cannot be opened at the start.
func (l *AccessLog) Run(ctx context.Context) error {
	out, err := l.cfg.Open()
	if err != nil {
		return fmt.Errorf("open access log: %w", err)
	}
	w := logWriter{log: l, out: out, spare: make([][]byte, len(l.shards))}
	defer w.close()
	timer := time.NewTimer(l.cfg.Delay)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			w.flush()
			return nil
		case <-l.reopen:
			w.flush()
			w.open()
			continue
		case <-l.wake:
		}
		timer.Reset(l.cfg.Delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		l.pending.Store(false) // lines that come from here on wake again
		w.flush()
	}
}

// logWriter is Run's side.
type logWriter struct {
	log    *AccessLog
	out    io.WriteCloser // nil after a failure
	spare  [][]byte
	failed time.Time
}

func (w *logWriter) flush() {
	for i := range w.log.shards {
		s := &w.log.shards[i]
		s.mu.Lock()
		full, lines := s.fill, s.lines
		s.fill, s.lines = w.spare[i][:0], 0
		s.mu.Unlock()
		w.spare[i] = full
		if len(full) > 0 {
			w.write(full, lines)
		}
	}
}

func (w *logWriter) write(b []byte, lines int64) {
	if w.out == nil && time.Since(w.failed) > reopenPause {
		w.open()
	}
	if w.out == nil {
		w.log.dropped.Add(lines)
		return
	}
	if _, err := w.out.Write(b); err != nil {
		w.log.dropped.Add(lines)
		w.fail("write", err)
		return
	}
	w.log.written.Add(lines)
}

func (w *logWriter) open() {
	w.close()
	out, err := w.log.cfg.Open()
	if err != nil {
		w.fail("open", err)
		return
	}
	w.out = out
}

func (w *logWriter) fail(step string, err error) {
	w.log.cfg.Log.Warn("access log not written", "step", step, "error", err, "dropped", w.log.dropped.Load())
	w.close()
	w.failed = time.Now()
}

func (w *logWriter) close() {
	if w.out == nil {
		return
	}
	if err := w.out.Close(); err != nil {
		w.log.cfg.Log.Warn("access log not closed", "error", err)
	}
	w.out = nil
}
