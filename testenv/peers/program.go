package peers

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// Program says which other program to start, and how one knows that it serves.
type Program struct {
	Name string   // in messages, "meshserver"
	Path string   // of the executable
	Args []string // without the program's name
	// Ready is a URL that answers 200 once the program serves.
	Ready  string
	Within time.Duration // bounds the start; 0 means 30 s
}

// StartProgram starts a program and returns once it serves.
func StartProgram(t testing.TB, p Program) *Process {
	t.Helper()
	if p.Within == 0 {
		p.Within = 30 * time.Second
	}
	process := &Process{t: t, name: p.Name, path: p.Path, args: p.Args, within: p.Within, ready: func(ctx context.Context, _ *output) error {
		return answers200(ctx, p.Ready)
	}}
	process.launch()
	return process
}

// answers200 asks url once.
func answers200(ctx context.Context, url string) error {
	text, status, err := httpGet(ctx, http.DefaultClient, url, "")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s answers %d: %.200s", url, status, text)
	}
	return nil
}
