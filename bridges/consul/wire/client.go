// Package wire speaks Consul's HTTP API: it asks, checks the bytes that come
// back and decodes them, and says in five kinds what went wrong.
//
// bridges/consul/watch asks through Client; Decode functions are pure. A value
// returned is the caller's. Clients may be used from any goroutine.
//
// Why answers are decoded here and not into the api package's types:
// ../RATIONALE.md, "One bad instance".
package wire

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/consul/api"
)

// Secret is a token that never prints: every way of formatting it hides the value.
type Secret string

// hidden stands for a Secret wherever one is printed.
const hidden = "(hidden)"

// String implements fmt.Stringer.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return s.String() }

// MarshalText implements encoding.TextMarshaler, which slog and JSON use.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Consistency chooses which server may answer. The zero value is Leader.
type Consistency uint8

// Consistency modes of Consul's HTTP API.
const (
	// Leader is Consul's default: the leader answers, from its lease.
	Leader Consistency = iota
	// Stale lets any server answer; answers of one that has lost its leader are
	// refused by Client, since they may be of any age.
	Stale
	// Consistent makes the leader ask a quorum first.
	Consistent
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Consistency) UnmarshalText(text []byte) error {
	switch string(text) {
	case "", "default", "leader":
		*c = Leader
	case "stale":
		*c = Stale
	case "consistent":
		*c = Consistent
	default:
		return fmt.Errorf("consistency %q, want default, stale or consistent", text)
	}
	return nil
}

// Query says what of a data centre is asked and how long the answer may wait.
type Query struct {
	Datacenter string        // empty: the agent's own
	Index      uint64        // 0: answer at once
	Wait       time.Duration // with Index: answer after that time at the latest; 0 means the server's 5 minutes
}

// Meta is what an answer says of itself.
type Meta struct {
	// Index is the answer's place in the registry's history; 0 when the
	// server named none, which no correct one does.
	Index uint64
	// Filtered says that the token's rights removed something from the answer.
	// Without a token Consul does not say so: an empty list of services then
	// counts as filtered if the cluster denies what it does not allow.
	Filtered bool
}

// ClientConfig is what NewClient needs.
type ClientConfig struct {
	// URL is "http://host:port" or "https://host:port", a path prefix allowed.
	URL string
	// Token is sent with each request; empty sends none.
	Token Secret
	// TLS is for https; nil means the system's roots. NewClient clones it.
	TLS *tls.Config
	// Namespace and Partition are for Consul Enterprise; empty sends none.
	Namespace, Partition string
	Consistency          Consistency
	// Conns is how many connections are kept for reuse, at least 1.
	Conns int
	// HTTP2 is called after each answer that came over HTTP/2; may be nil.
	HTTP2 func()
}

// Client asks one Consul agent or server. All methods may be called from any
// goroutine and end when their context does.
type Client struct {
	url         string
	raw         *api.Raw
	transport   *http.Transport
	consistency Consistency
	anonymous   bool // no token is sent
}

// NewClient makes a client; it opens no connection.
func NewClient(cfg ClientConfig) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("address %q: not a URL", cfg.URL)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("address %q, want http://host:port or https://host:port", u.Redacted())
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), map[string]string{"http": "8500", "https": "8501"}[u.Scheme])
	}
	tlsConfig := cfg.TLS.Clone()
	if tlsConfig == nil {
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	transport := &http.Transport{
		DialContext: (&net.Dialer{
			Timeout: dialTime,
			// Blocking queries are silent for minutes; a peer that vanished
			// without a word is noticed after 25 s.
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
		}).DialContext,
		TLSClientConfig:     tlsConfig,
		TLSHandshakeTimeout: dialTime,
		ForceAttemptHTTP2:   true,
		MaxIdleConns:        max(1, cfg.Conns),
		MaxIdleConnsPerHost: max(1, cfg.Conns),
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true, // the agent does not compress; a compressed answer would evade maxAnswer
	}
	client, err := api.NewClient(&api.Config{
		Address:    u.Host,
		Scheme:     u.Scheme,
		PathPrefix: u.Path,
		Transport:  transport,
		HttpClient: &http.Client{
			Transport: &door{next: transport, token: cfg.Token, namespace: cfg.Namespace, partition: cfg.Partition, http2: cfg.HTTP2},
			// A redirect would carry the token to whoever is named in it.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		// Keeps the package from looking for a token in the environment; door
		// replaces it.
		Token:     hidden,
		Namespace: cfg.Namespace,
		Partition: cfg.Partition,
	})
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", u.Redacted(), err)
	}
	return &Client{
		url: u.Redacted(), raw: client.Raw(), transport: transport, consistency: cfg.Consistency, anonymous: cfg.Token == "",
	}, nil
}

// dialTime bounds connecting and the TLS handshake, each.
const dialTime = 5 * time.Second

// answerTime bounds an answer on top of the time it may wait: the slowest
// complete read of 100,000 instances over a WAN has room in it.
const answerTime = 30 * time.Second

// URL is the address without credentials, for logs.
func (c *Client) URL() string { return c.url }

// CloseIdle closes the connections on which nothing is asked.
func (c *Client) CloseIdle() { c.transport.CloseIdleConnections() }

// Services lists the services of a data centre with the tags of their instances.
func (c *Client) Services(ctx context.Context, q Query) (Catalog, Meta, error) {
	body, meta, deny, err := c.get(ctx, "/v1/catalog/services", q)
	if err != nil {
		return nil, Meta{}, err
	}
	out, err := DecodeCatalog(body)
	meta.Filtered = meta.Filtered || c.anonymous && deny && len(out) == 0
	return out, meta, err
}

// Health reads all instances of a service, whatever their checks say.
func (c *Client) Health(ctx context.Context, service string, q Query) (Instances, Meta, error) {
	body, meta, _, err := c.get(ctx, "/v1/health/service/"+service, q)
	if err != nil {
		return Instances{}, Meta{}, err
	}
	out, err := DecodeInstances(body)
	return out, meta, err
}

// Ping asks for the leader: nil when there is one. It needs no rights.
func (c *Client) Ping(ctx context.Context) error {
	var leader string
	_, err := c.raw.Query("/v1/status/leader", &leader, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return c.wrap(ctx, err)
	}
	if leader == "" {
		return &Error{Kind: Unavailable, Text: "the cluster has no leader"}
	}
	return nil
}

// get asks; deny says that the cluster denies what no right allows.
func (c *Client) get(ctx context.Context, path string, q Query) (body json.RawMessage, meta Meta, deny bool, err error) {
	opts := &api.QueryOptions{
		Datacenter:        q.Datacenter,
		WaitIndex:         q.Index,
		AllowStale:        c.consistency == Stale,
		RequireConsistent: c.consistency == Consistent,
	}
	limit := answerTime
	if q.Index > 0 {
		wait := q.Wait
		if wait <= 0 {
			wait = serverWait
		}
		opts.WaitTime = wait
		limit += wait + wait/16 // the server adds up to a sixteenth, so that clients do not return together
	}
	bound, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	got, err := c.raw.Query(path, &body, opts.WithContext(bound))
	if err != nil {
		return nil, Meta{}, false, c.wrap(ctx, err)
	}
	if c.consistency == Stale && (!got.KnownLeader || got.LastContact > maxLastContact) {
		return nil, Meta{}, false, &Error{Kind: Unavailable, Text: fmt.Sprintf("the answering server last heard of its leader %v ago", got.LastContact)}
	}
	meta = Meta{Index: got.LastIndex, Filtered: got.ResultsFilteredByACLs}
	return body, meta, got.DefaultACLPolicy == "deny", nil
}

// serverWait is what Consul waits when a query names no time.
const serverWait = 5 * time.Minute

// maxLastContact is how long a server may have been without its leader for its
// stale answers to count as a read.
const maxLastContact = 10 * time.Second

// wrap turns what the api package reports into an *Error. The caller's own
// cancellation stays what it is.
func (c *Client) wrap(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if status, ok := errors.AsType[api.StatusError](err); ok {
		return statusError(status.Code, status.Body)
	}
	if errors.Is(err, errTooLarge) {
		return &Error{Kind: Malformed, Text: err.Error()}
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return &Error{Kind: Malformed, Text: fmt.Sprintf("answer is no JSON: %v at byte %d", syntax, syntax.Offset)}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{Kind: Unavailable, Text: c.url + " did not answer in time"}
	}
	return &Error{Kind: Unavailable, Text: err.Error()}
}
