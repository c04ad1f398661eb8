package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// screen shows what the demo does. On a terminal a step that takes long shows
// that it is alive; elsewhere every step is one line when it is done.
type screen struct {
	out  io.Writer
	live bool

	mu sync.Mutex // serialises writes
}

func newScreen(out *os.File) *screen {
	return &screen{out: out, live: term.IsTerminal(int(out.Fd()))}
}

// step runs work under a title and says how long it took.
func (s *screen) step(title string, work func() error) error {
	began := time.Now()
	stop := s.animate(title, began)
	err := work()
	stop()
	mark, colour := "✓", "\x1b[32m"
	if err != nil {
		mark, colour = "✗", "\x1b[31m"
	}
	if !s.live {
		colour = ""
	}
	s.printf("%s%s%s %s  (%.1f s)\n", colour, mark, reset(colour), title, time.Since(began).Seconds())
	return err
}

func reset(colour string) string {
	if colour == "" {
		return ""
	}
	return "\x1b[0m"
}

// animate redraws the title until the returned func is called.
func (s *screen) animate(title string, began time.Time) (stop func()) {
	if !s.live {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for frame := 0; ; frame++ {
			select {
			case <-quit:
				s.printf("\r\x1b[K")
				return
			case <-tick.C:
				s.printf("\r\x1b[K%c %s  %.0f s", []rune("⠋⠙⠸⠴⠦⠇")[frame%6], title, time.Since(began).Seconds())
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

func (s *screen) printf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format, args...)
}

// bar draws a share of 100 as 40 cells.
func bar(percent float64) string {
	const cells = 40
	full := min(cells, int(percent/100*cells+0.5))
	b := make([]rune, 0, cells)
	for i := range cells {
		if i < full {
			b = append(b, '█')
		} else {
			b = append(b, '░')
		}
	}
	return string(b)
}
