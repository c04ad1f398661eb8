package wire

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"
)

// Kind says what a failure means for the next attempt.
type Kind uint8

// Kinds of failure. The zero value is Unavailable.
const (
	// Unavailable: no connection, no answer, no leader. Try again soon.
	Unavailable Kind = iota
	// Failing: the agent answers with an error of its own. Try again soon.
	Failing
	// Overloaded: the agent refuses more connections or requests. Ask less.
	Overloaded
	// Denied: the token is unknown, expired or lacks rights. Only an operator
	// can help; ask rarely.
	Denied
	// Malformed: an answer came and could not be read.
	Malformed
)

var kindNames = [...]string{"unavailable", "failing", "overloaded", "denied", "malformed"}

// String returns the lower-case name.
func (k Kind) String() string { return kindNames[k] }

// Error is a query that brought no usable answer.
type Error struct {
	Kind Kind
	Text string
}

func (e *Error) Error() string { return e.Text }

// KindOf returns the kind of err; Unavailable when it carries none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Unavailable
}

// maxErrorText bounds what is kept of an error's body, in bytes.
const maxErrorText = 200

func statusError(code int, body string) *Error {
	body = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, body[:min(len(body), maxErrorText)]))
	switch {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return &Error{Denied, fmt.Sprintf("the token is refused (%d %s): it is unknown, has expired or lacks service:read and node:read", code, body)}
	case code == http.StatusTooManyRequests:
		return &Error{Overloaded, fmt.Sprintf("the agent refuses more requests (429 %s)", body)}
	case code >= 300 && code < 400:
		return &Error{Malformed, fmt.Sprintf("answered by a redirect (%d), which is not followed: it would carry the token on", code)}
	case strings.Contains(body, "ACL not found") || strings.Contains(body, "Permission denied"):
		// Agents that pass a server's refusal on wrap it in a 500.
		return &Error{Denied, fmt.Sprintf("the token is refused (%d %s)", code, body)}
	}
	return &Error{Failing, fmt.Sprintf("the agent answers %d %s", code, body)}
}
