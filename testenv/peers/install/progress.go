package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// quietPeriod is how often a run that is not on a terminal says that it lives.
const quietPeriod = 30 * time.Second

// progress tells the user what happens: a live line on a terminal, else a line
// for each change and now and then one in between.
type progress struct {
	out   io.Writer
	width int // of the terminal, in columns; 0 if it is none

	mu   sync.Mutex // guards the field below, and keeps lines whole
	last string     // what the running command printed last
}

func newProgress(file *os.File) *progress {
	p := &progress{out: file}
	if width, _, err := term.GetSize(int(file.Fd())); err == nil {
		p.width = width
	}
	return p
}

// line prints a line that stays.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	_, _ = fmt.Fprintf(p.out, format+"\n", args...)
}

// detail sets what the live line ends with.
func (p *progress) detail(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = text
}

// begin shows a step until the returned function is called.
func (p *progress) begin(step string) (done func()) {
	p.detail("")
	p.line("%s", step)
	start, period := time.Now(), quietPeriod
	if p.width > 0 {
		period = 200 * time.Millisecond
	}
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		ticks := time.NewTicker(period)
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				p.tick(time.Since(start))
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-gone
		p.mu.Lock()
		defer p.mu.Unlock()
		p.clear()
	}
}

func (p *progress) tick(elapsed time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := fmt.Sprintf("  %v  %s", elapsed.Round(time.Second), p.last)
	if p.width == 0 {
		_, _ = fmt.Fprintln(p.out, text)
		return
	}
	if runes := []rune(text); len(runes) >= p.width {
		text = string(runes[:p.width-1])
	}
	p.clear()
	_, _ = fmt.Fprint(p.out, text)
}

// clear removes the live line; the caller holds mu.
func (p *progress) clear() {
	if p.width > 0 {
		_, _ = fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// lineWriter copies what a command prints to a file, and its last line to show.
// Only one goroutine writes: exec.Cmd sees to that for equal Stdout and Stderr.
type lineWriter struct {
	file    io.Writer
	show    func(string)
	pending []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.pending = append(w.pending, p...)
	for {
		line, rest, found := bytes.Cut(w.pending, []byte{'\n'})
		if !found {
			break
		}
		w.pending = rest
		if text := strings.TrimSpace(printable(string(line))); text != "" {
			w.show(text)
		}
	}
	return w.file.Write(p)
}

// printable drops control characters, so that a command cannot move the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}
