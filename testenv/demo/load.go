package main

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

// Load is an open loop of requests: each leaves at its time whether or not the
// ones before it have returned, as real callers do.
type load struct {
	client *http.Client
	target string // http://echo

	mu    sync.Mutex // guards total
	total tally
	lost  atomic.Int64 // requests that could not leave: too many were waiting
}

// tally counts what callers saw.
type tally struct {
	gets, posts             int
	failedGets, failedPosts int
	versions                map[string]int
	slowest                 time.Duration
	errors                  []string // the first few
}

const (
	requestsPerSecond = 600
	postEvery         = 5    // every fifth request is a POST
	maxWaiting        = 4000 // requests under way; beyond it the mesh has stopped answering
	keptErrors        = 5
)

func newLoad(proxy, target string) (*load, error) {
	u, err := url.Parse("http://" + proxy)
	if err != nil {
		return nil, fmt.Errorf("proxy address: %w", err)
	}
	transport := &http.Transport{Proxy: http.ProxyURL(u), MaxIdleConnsPerHost: 256, MaxIdleConns: 256}
	return &load{
		client: &http.Client{Transport: transport, Timeout: 10 * time.Second},
		target: target,
		total:  tally{versions: map[string]int{}},
	}, nil
}

// run sends until ctx ends, then waits for the answers.
func (l *load) run(ctx context.Context) {
	var waiting sync.WaitGroup
	slots := make(chan struct{}, maxWaiting)
	const batch = requestsPerSecond / 100
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
		due := min(int(time.Since(start).Seconds()*requestsPerSecond), sent+10*batch)
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

func (l *load) one(ctx context.Context, n int) {
	method, body := http.MethodGet, ""
	if n%postEvery == 0 {
		method, body = http.MethodPost, fmt.Sprintf("order %d", n)
	}
	began := time.Now()
	version, err := l.call(ctx, method, body)
	took := time.Since(began)

	l.mu.Lock()
	defer l.mu.Unlock()
	t := &l.total
	failed := 0
	if err != nil {
		failed = 1
		if len(t.errors) < keptErrors {
			t.errors = append(t.errors, method+": "+err.Error())
		}
	} else {
		t.versions[version]++
	}
	if method == http.MethodGet {
		t.gets++
		t.failedGets += failed
	} else {
		t.posts++
		t.failedPosts += failed
	}
	t.slowest = max(t.slowest, took)
}

// call makes one request and checks the answer's status and body.
func (l *load) call(ctx context.Context, method, body string) (version string, err error) {
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

// take returns what was counted since the last take.
func (l *load) take() tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.total
	l.total = tally{versions: map[string]int{}}
	return t
}

// add puts the counts of u onto t.
func (t *tally) add(u tally) {
	t.gets += u.gets
	t.posts += u.posts
	t.failedGets += u.failedGets
	t.failedPosts += u.failedPosts
	t.slowest = max(t.slowest, u.slowest)
	for v, n := range u.versions {
		t.versions[v] += n
	}
	t.errors = append(t.errors, u.errors...)
}

func (t *tally) requests() int { return t.gets + t.posts }

// share is the part of the answers that a version gave, in percent.
func (t *tally) share(version string) float64 {
	sum := 0
	for _, n := range t.versions {
		sum += n
	}
	if sum == 0 {
		return 0
	}
	return 100 * float64(t.versions[version]) / float64(sum)
}
