package wire

import (
	"errors"
	"fmt"
	"io"
	"net/http"
)

// maxAnswer is the largest answer read, in bytes: 100,000 instances of one
// service at the 1.2 KiB that a Spring Cloud instance takes.
const maxAnswer = 128 << 20

var errTooLarge = errors.New("answer is larger than 128 MiB")

// door is the one place through which requests leave: it sets the credentials
// of this source and nothing that the api package found in the environment, and
// caps what comes back.
type door struct {
	next                 http.RoundTripper
	token                Secret
	namespace, partition string
	http2                func()
}

// RoundTrip implements http.RoundTripper.
func (d *door) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Del("X-Consul-Token")
	if d.token != "" {
		req.Header.Set("X-Consul-Token", string(d.token))
	}
	if d.namespace == "" || d.partition == "" {
		q := req.URL.Query()
		if d.namespace == "" {
			q.Del("ns")
		}
		if d.partition == "" {
			q.Del("partition")
		}
		req.URL.RawQuery = q.Encode()
	}
	resp, err := d.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.ProtoMajor == 2 && d.http2 != nil {
		d.http2()
	}
	if resp.ContentLength > maxAnswer {
		_ = resp.Body.Close() // the answer is refused either way
		return nil, fmt.Errorf("%w: %d bytes", errTooLarge, resp.ContentLength)
	}
	resp.Body = &capped{ReadCloser: resp.Body, left: maxAnswer}
	return resp, nil
}

// capped fails a body that goes on after left bytes.
type capped struct {
	io.ReadCloser
	left int64
}

// Read implements io.Reader.
func (c *capped) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > c.left {
		p = p[:c.left]
	}
	n, err := c.ReadCloser.Read(p)
	c.left -= int64(n)
	return n, err
}
