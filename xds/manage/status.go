package manage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/store"
)

// requestError is a mistake of the caller, said in full.
type requestError struct{ err error }

func (e *requestError) Error() string { return e.err.Error() }

func (e *requestError) Unwrap() error { return e.err }

func badRequest(format string, args ...any) error {
	return &requestError{fmt.Errorf(format, args...)}
}

// What LeaseErrors become.
var (
	errNoLease = errors.New("it ended or was never given; register again")
	errNoRoom  = errors.New("the built-in registry takes no more")
)

// mark says of an error of Leases what it means here.
func (e LeaseErrors) mark(err error) error {
	is := func(target error) bool { return target != nil && errors.Is(err, target) }
	switch {
	case is(e.Unknown):
		return fmt.Errorf("%w: %w", err, errNoLease)
	case is(e.Invalid):
		return &requestError{err}
	case is(e.Full):
		return fmt.Errorf("%w: %w", err, errNoRoom)
	}
	return err
}

// stateError says that the request is sound and what is there forbids it.
type stateError struct{ text string }

func (e *stateError) Error() string { return e.text }

func forbidden(format string, args ...any) error {
	return &stateError{fmt.Sprintf(format, args...)}
}

// limitError says that the request is sound and more than is done at once.
type limitError struct{ text string }

func (e *limitError) Error() string { return e.text }

func overLimit(format string, args ...any) error {
	return &limitError{fmt.Sprintf(format, args...)}
}

// bodyError says that a request did not arrive in full.
type bodyError struct{ err error }

func (e *bodyError) Error() string {
	if errors.Is(e.err, os.ErrDeadlineExceeded) {
		return "the request did not arrive in time"
	}
	return "the request broke off: " + e.err.Error()
}

func (e *bodyError) Unwrap() error { return e.err }

// wireError maps every error to its code on the wire. Only here are codes made; an
// error that has one already is of connect, such as of a message it cannot decode.
func wireError(err error) *connect.Error {
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		return ce
	}
	if mistakes, ok := errors.AsType[rules.Mistakes](err); ok {
		return withProblems(connect.NewError(connect.CodeInvalidArgument, err.Error()).WithCause(err), mistakes)
	}
	return connect.NewError(code(err), err.Error()).WithCause(err)
}

func code(err error) connect.Code {
	if fault, ok := errors.AsType[*store.FaultError](err); ok {
		switch fault.Fault {
		case store.Full:
			return connect.CodeResourceExhausted
		case store.Busy:
			return connect.CodeUnavailable
		case store.Corrupt:
			return connect.CodeDataLoss
		}
		return connect.CodeInternal
	}
	if _, ok := errors.AsType[*store.ConflictError](err); ok {
		return connect.CodeAborted
	}
	if _, ok := errors.AsType[*store.InvalidError](err); ok {
		return connect.CodeInvalidArgument
	}
	if _, ok := errors.AsType[*requestError](err); ok {
		return connect.CodeInvalidArgument
	}
	if _, ok := errors.AsType[*stateError](err); ok {
		return connect.CodeFailedPrecondition
	}
	if _, ok := errors.AsType[*limitError](err); ok {
		return connect.CodeResourceExhausted
	}
	if body, ok := errors.AsType[*bodyError](err); ok {
		if errors.Is(body.err, os.ErrDeadlineExceeded) {
			return connect.CodeDeadlineExceeded
		}
		return connect.CodeCanceled
	}
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, errNoLease):
		return connect.CodeNotFound
	case errors.Is(err, errNoRoom):
		return connect.CodeResourceExhausted
	case errors.Is(err, store.ErrClosed):
		return connect.CodeUnavailable
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return connect.CodeDeadlineExceeded
	}
	return connect.CodeInternal
}

func withProblems(ce *connect.Error, mistakes rules.Mistakes) *connect.Error {
	detail, err := connectproto.NewErrorDetail(&api.RuleProblems{Problems: problems(mistakes)})
	if err != nil {
		return ce // the message names every mistake as well
	}
	return ce.WithDetail(detail)
}

func problems(mistakes rules.Mistakes) []*api.Problem {
	list := make([]*api.Problem, len(mistakes))
	for i, m := range mistakes {
		parts := make([]string, 0, 3)
		for _, part := range []string{string(m.Rule), m.Path, m.Text} {
			if part != "" {
				parts = append(parts, part)
			}
		}
		list[i] = &api.Problem{Line: uint32(max(m.Line, 0)), Message: strings.Join(parts, ": ")}
	}
	return list
}
