package echo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"unicode/utf8"
)

// bodyLimit is the largest body that is described in an Answer, in bytes; a
// larger one gets 413. The path /stream takes any.
const bodyLimit = 8 << 20

// Answer is what the server says about a request.
type Answer struct {
	ID         string              `json:"id"`
	Version    string              `json:"version"`
	Method     string              `json:"method"`
	Path       string              `json:"path"`
	Query      string              `json:"query"`
	Host       string              `json:"host"`
	Protocol   string              `json:"protocol"` // "HTTP/1.1"
	Remote     string              `json:"remote"`   // ip:port of the peer of the connection
	Headers    map[string][]string `json:"headers"`
	Trailers   map[string][]string `json:"trailers,omitempty"`
	Body       string              `json:"body"` // empty if it is not UTF-8
	BodyBytes  int                 `json:"body_bytes"`
	BodySHA256 string              `json:"body_sha256"` // hexadecimal
}

// describe answers with what the request held.
func (h *app) describe(w http.ResponseWriter, r *http.Request, status int) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	if r.URL.Query().Get("format") == "text" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		send(w, status, body)
		return
	}
	answer := Answer{
		ID: h.id, Version: h.version,
		Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery,
		Host: r.Host, Protocol: r.Proto, Remote: r.RemoteAddr,
		Headers: r.Header, Trailers: r.Trailer,
		BodyBytes: len(body), BodySHA256: hash(body),
	}
	if utf8.Valid(body) {
		answer.Body = string(body)
	}
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(answer); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	send(w, status, text.Bytes())
}

// trailers answers with the body and, after it, its length and hash and the
// trailers that the request had.
func (h *app) trailers(w http.ResponseWriter, r *http.Request, status int) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	w.Header().Add("Trailer", "X-Body-Bytes")
	w.Header().Add("Trailer", "X-Body-Sha256")
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		return // the client left
	}
	if http.NewResponseController(w).Flush() != nil { // chunked, even if empty
		return
	}
	w.Header().Set("X-Body-Bytes", strconv.Itoa(len(body)))
	w.Header().Set("X-Body-Sha256", hash(body))
	for name, values := range r.Trailer {
		w.Header()[http.TrailerPrefix+name] = values
	}
}

// readBody returns the whole body, or answers with the reason why not.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err == nil {
		return body, true
	}
	status := http.StatusBadRequest
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		status = http.StatusRequestEntityTooLarge
	}
	http.Error(w, err.Error(), status)
	return nil, false
}

// send writes a whole answer. An error means that the client left.
func send(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func hash(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}
