package echo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// pattern fills generated bodies.
const pattern = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-\n"

// app answers the requests of one server.
type app struct {
	id, version string
}

// handler returns the application as an HTTP handler.
func handler(cfg Config) http.Handler { return &app{id: cfg.ID, version: cfg.Version} }

func (h *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Echo-Id", h.id)
	w.Header().Set("X-Echo-Version", h.version)
	o := options{query: r.URL.Query()}
	delay := o.duration("delay", 0)
	status := o.number("status", http.StatusOK, 200, 599)
	count := o.number("count", 3, 0, 1<<20)
	size := o.number("size", 1024, 0, 1<<20)
	every := o.duration("every", 0)
	first, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if first == "bytes" || first == "chunks" {
		o.query.Set(first, rest)
		count = o.number(first, 0, 0, 1<<30)
	}
	if err := errors.Join(o.errs...); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !sleep(r, delay) {
		return
	}
	switch first {
	case "bytes":
		generate(w, status, count)
	case "chunks":
		chunks(w, r, status, count, size, every)
	case "sse":
		h.events(w, r, count, every)
	case "stream":
		stream(w, r, status)
	case "trailers":
		h.trailers(w, r, status)
	case "upgrade":
		upgrade(w, r)
	default:
		h.describe(w, r, status)
	}
}

// options reads the query and gathers every mistake in it.
type options struct {
	query url.Values
	errs  []error
}

func (o *options) number(name string, fallback, low, high int) int {
	text := o.query.Get(name)
	if text == "" {
		return fallback
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		o.errs = append(o.errs, fmt.Errorf("%s: %q, want %d to %d", name, text, low, high))
	}
	return n
}

func (o *options) duration(name string, fallback time.Duration) time.Duration {
	text := o.query.Get(name)
	if text == "" {
		return fallback
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		o.errs = append(o.errs, fmt.Errorf("%s: %q, want a duration like 100ms", name, text))
	}
	return d
}

// sleep waits, and reports whether the client still does.
func sleep(r *http.Request, d time.Duration) bool {
	if d == 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// generate answers with so many bytes.
func generate(w http.ResponseWriter, status, bodyBytes int) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(bodyBytes))
	w.WriteHeader(status)
	_, _ = io.CopyN(w, new(endless), int64(bodyBytes)) // an error means that the client left
}

// endless reads as the pattern, over and over.
type endless struct{ offset int }

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		copied := copy(p[n:], pattern[e.offset:])
		n += copied
		e.offset = (e.offset + copied) % len(pattern)
	}
	return n, nil
}

// chunks answers with a body that comes piece by piece.
func chunks(w http.ResponseWriter, r *http.Request, status, count, chunkBytes int, every time.Duration) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(status)
	control := http.NewResponseController(w)
	source := new(endless)
	for range count {
		if _, err := io.CopyN(w, source, int64(chunkBytes)); err != nil || control.Flush() != nil || !sleep(r, every) {
			return
		}
	}
}

// events answers with server-sent events.
func (h *app) events(w http.ResponseWriter, r *http.Request, count int, every time.Duration) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	for i := range count {
		if _, err := fmt.Fprintf(w, "id: %d\ndata: %s %s\n\n", i, h.id, h.version); err != nil || control.Flush() != nil {
			return
		}
		if !sleep(r, every) {
			return
		}
	}
}

// stream returns the body while it still comes.
func stream(w http.ResponseWriter, r *http.Request, status int) {
	control := http.NewResponseController(w)
	if r.ProtoMajor == 1 {
		if err := control.EnableFullDuplex(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(status)
	if control.Flush() != nil {
		return
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil || control.Flush() != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// upgrade leaves HTTP and returns raw bytes.
func upgrade(w http.ResponseWriter, r *http.Request) {
	protocol := r.Header.Get("Upgrade")
	if protocol == "" || !strings.Contains(strings.ToLower(r.Header.Get("Connection")), "upgrade") {
		w.Header().Set("Upgrade", "echo")
		w.Header().Set("Connection", "Upgrade")
		http.Error(w, "want Connection: Upgrade and an Upgrade header", http.StatusUpgradeRequired)
		return
	}
	conn, both, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _ = conn.Close() }()
	header := http.Header{}
	header.Set("Upgrade", protocol)
	header.Set("Connection", "Upgrade")
	header.Set("X-Echo-Id", w.Header().Get("X-Echo-Id"))
	header.Set("X-Echo-Version", w.Header().Get("X-Echo-Version"))
	if err := writeSwitch(both.Writer, header); err != nil {
		return // the client left
	}
	_, _ = io.Copy(conn, both.Reader) // ends with the connection
}

func writeSwitch(w *bufio.Writer, header http.Header) error {
	_, err := io.WriteString(w, "HTTP/1.1 101 Switching Protocols\r\n")
	return errors.Join(err, header.Write(w), writeLine(w), w.Flush())
}

func writeLine(w *bufio.Writer) error {
	_, err := w.WriteString("\r\n")
	return err
}
