// Package openloop keeps requests to an echo application going at a fixed rate,
// each leaving at its time whether or not the ones before it have returned, as
// real callers do, and checks every answer by status and body.
//
// The demo and the fault tests use it. Methods may be called from any goroutine.
package openloop

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Loop is an open loop of requests. Make one with New.
type Loop struct {
	client *http.Client
	target string // http://echo

	mu    sync.Mutex // guards total
	total Tally
	lost  atomic.Int64
}

// Tally counts what callers saw.
type Tally struct {
	Gets, Posts             int
	FailedGets, FailedPosts int
	Versions                map[string]int
	Slowest                 time.Duration
	Errors                  []string // the first few
}

const (
	// PerSecond is the rate of requests.
	PerSecond = 600
	// PostEvery says that each fifth request is a POST.
	PostEvery = 5
	// MaxWaiting bounds the requests under way; beyond it the mesh has stopped
	// answering.
	MaxWaiting = 4000

	keptErrors = 5
)

// New returns a loop that reaches target ("http://echo") through an HTTP proxy at
// proxy (host:port).
func New(proxy, target string) (*Loop, error) {
	u, err := url.Parse("http://" + proxy)
	if err != nil {
		return nil, fmt.Errorf("proxy address: %w", err)
	}
	transport := &http.Transport{Proxy: http.ProxyURL(u), MaxIdleConnsPerHost: 256, MaxIdleConns: 256}
	return &Loop{
		client: &http.Client{Transport: transport, Timeout: 10 * time.Second},
		target: target,
		total:  Tally{Versions: map[string]int{}},
	}, nil
}

// Run sends until ctx ends, then waits for the answers.
func (l *Loop) Run(ctx context.Context) {
	var waiting sync.WaitGroup
	slots := make(chan struct{}, MaxWaiting)
	const batch = PerSecond / 100
	tick := time.NewTicker(time.Second / 100)
	defer tick.Stop()
	start := time.Now()
	for sent := 0; ; {
		select {
		case <-ctx.Done():
			waiting.Wait()
			l.client.CloseIdleConnections()
			return
		case <-tick.C:
		}
		// After a pause of this process the due requests are made up for.
		due := min(int(time.Since(start).Seconds()*PerSecond), sent+10*batch)
		for ; sent < due; sent++ {
			select {
			case slots <- struct{}{}:
			default:
				l.lost.Add(1)
				continue
			}
			n := sent
			waiting.Go(func() {
				l.one(context.WithoutCancel(ctx), n)
				<-slots
			})
		}
	}
}

func (l *Loop) one(ctx context.Context, n int) {
	method, body := http.MethodGet, ""
	if n%PostEvery == 0 {
		method, body = http.MethodPost, fmt.Sprintf("order %d", n)
	}
	began := time.Now()
	version, err := l.Call(ctx, method, body)
	took := time.Since(began)

	l.mu.Lock()
	defer l.mu.Unlock()
	t := &l.total
	failed := 0
	if err != nil {
		failed = 1
		if len(t.Errors) < keptErrors {
			t.Errors = append(t.Errors, method+": "+err.Error())
		}
	} else {
		t.Versions[version]++
	}
	if method == http.MethodGet {
		t.Gets++
		t.FailedGets += failed
	} else {
		t.Posts++
		t.FailedPosts += failed
	}
	t.Slowest = max(t.Slowest, took)
}

// Call makes one request and checks the answer's status and body.
func (l *Loop) Call(ctx context.Context, method, body string) (version string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, l.target+"/demo", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d: %.120s", resp.StatusCode, text)
	}
	var answer struct{ Version, Method, Path, Body string }
	if err := json.Unmarshal(text, &answer); err != nil {
		return "", fmt.Errorf("answer is not the echo's: %w", err)
	}
	if answer.Method != method || answer.Path != "/demo" || answer.Body != body {
		return "", fmt.Errorf("answer does not match the request: %.200s", text)
	}
	return answer.Version, nil
}

// Take returns what was counted since the last Take.
func (l *Loop) Take() Tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.total
	l.total = Tally{Versions: map[string]int{}}
	return t
}

// Add puts the counts of u onto t.
func (t *Tally) Add(u Tally) {
	t.Gets += u.Gets
	t.Posts += u.Posts
	t.FailedGets += u.FailedGets
	t.FailedPosts += u.FailedPosts
	t.Slowest = max(t.Slowest, u.Slowest)
	for v, n := range u.Versions {
		t.Versions[v] += n
	}
	t.Errors = append(t.Errors, u.Errors...)
}

// Lost is how many requests could not leave because too many were waiting.
func (l *Loop) Lost() int64 { return l.lost.Load() }

// Requests is how many were answered or failed.
func (t *Tally) Requests() int { return t.Gets + t.Posts }

// Share is the part of the answers that a version gave, in percent.
func (t *Tally) Share(version string) float64 {
	sum := 0
	for _, n := range t.Versions {
		sum += n
	}
	if sum == 0 {
		return 0
	}
	return 100 * float64(t.Versions[version]) / float64(sum)
}
