package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/cmd/internal/process"
)

// show writes m as the flags want it; table draws it for people.
func (a *app) show(m proto.Message, table func(*screen)) error {
	if a.format == "table" {
		return a.draw(table)
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return a.write(text)
}

// showValue is show for what is no message.
func (a *app) showValue(v any, table func(*screen)) error {
	if a.format == "table" {
		return a.draw(table)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return a.write(text)
}

// write prints JSON text in the wanted format; protojson varies its spacing from
// build to build, so it is indented anew.
func (a *app) write(text []byte) error {
	var out []byte
	if a.format == "yaml" {
		var err error
		if out, err = yaml.JSONToYAML(text); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
	} else {
		var b bytes.Buffer
		if err := json.Indent(&b, text, "", "  "); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
		b.WriteByte('\n')
		out = b.Bytes()
	}
	_, err := a.Out.Write(out)
	return err
}

func (a *app) draw(table func(*screen)) error {
	t := &screen{out: a.Out, terminal: process.IsTerminal(a.Out) && a.Getenv("NO_COLOR") == ""}
	table(t)
	t.flush()
	return t.err
}

// cell is a piece of text with a colour that only terminals see.
type cell struct {
	text   string
	colour string // SGR code; empty for none
}

func plain(s string) cell  { return cell{s, ""} }
func bold(s string) cell   { return cell{s, "1"} }
func red(s string) cell    { return cell{s, "31"} }
func green(s string) cell  { return cell{s, "32"} }
func yellow(s string) cell { return cell{s, "33"} }
func dim(s string) cell    { return cell{s, "2"} }

// screen draws tables: aligned and coloured on a terminal, columns separated by
// tabs elsewhere, so that cut and awk can read them.
type screen struct {
	out      io.Writer
	terminal bool
	rows     [][]cell
	err      error
}

// row adds a row of strings and cells.
func (t *screen) row(columns ...any) {
	cells := make([]cell, len(columns))
	for i, c := range columns {
		switch c := c.(type) {
		case cell:
			cells[i] = c
		default:
			cells[i] = plain(fmt.Sprint(c))
		}
		// A tab or line break of a registry must not break the table.
		cells[i].text = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, cells[i].text)
	}
	t.rows = append(t.rows, cells)
}

func (t *screen) header(names ...string) {
	cells := make([]any, len(names))
	for i, n := range names {
		cells[i] = bold(strings.ToUpper(n))
	}
	t.row(cells...)
}

// pair adds a name and what it is.
func (t *screen) pair(name string, values ...any) {
	t.row(append([]any{bold(name + ":")}, values...)...)
}

// flush ends a table; the next row starts another.
func (t *screen) flush() {
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for len(row) > 0 && row[len(row)-1].text == "" {
			row = row[:len(row)-1]
		}
		for i, c := range row {
			if t.terminal && c.colour != "" {
				b.WriteString("\x1b[" + c.colour + "m" + c.text + "\x1b[0m")
			} else {
				b.WriteString(c.text)
			}
			switch {
			case i == len(row)-1:
			case t.terminal:
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			default:
				b.WriteByte('\t')
			}
		}
		b.WriteByte('\n')
	}
	t.rows = nil
	t.print(b.String())
}

// text ends a table and prints s as it is.
func (t *screen) text(s string) {
	t.flush()
	t.print(s)
}

func (t *screen) print(s string) {
	if t.err == nil && s != "" {
		_, t.err = io.WriteString(t.out, s)
	}
}

// age says how long ago a time is.
func age(ts *timestamppb.Timestamp) string {
	if ts == nil {
		return "never"
	}
	d := time.Since(ts.AsTime())
	switch {
	case d < time.Second:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func moment(ts *timestamppb.Timestamp) string {
	if ts == nil {
		return ""
	}
	return ts.AsTime().Local().Format("2006-01-02 15:04:05")
}

// patience is how long something may take before the user is told.
const patience = 2 * time.Second

// progress tells on stderr what the program waits for, once it takes long: one
// line in a log, a line that counts on a terminal.
type progress struct {
	done chan struct{}
	over sync.WaitGroup

	mu   sync.Mutex
	what string // guarded by mu
}

func (a *app) progress(what string) *progress {
	p := &progress{done: make(chan struct{}), what: what}
	terminal := process.IsTerminal(a.Err)
	p.over.Go(func() {
		started, tick := time.Now(), time.NewTimer(patience)
		defer tick.Stop()
		said := ""
		for {
			select {
			case <-p.done:
				if terminal && said != "" {
					fmt.Fprint(a.Err, "\r\x1b[K")
				}
				return
			case <-tick.C:
			}
			what := p.doing()
			switch {
			case terminal:
				fmt.Fprintf(a.Err, "\r\x1b[K%s ... %ds", what, int(time.Since(started).Seconds()))
			case what != said:
				fmt.Fprintf(a.Err, "%s ...\n", what)
			}
			said = what
			tick.Reset(time.Second)
		}
	})
	return p
}

// now says that the program waits for something else.
func (p *progress) now(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = what
}

func (p *progress) doing() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.what
}

func (p *progress) stop() {
	close(p.done)
	p.over.Wait()
}
