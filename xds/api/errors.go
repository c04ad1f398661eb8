package api

import (
	"errors"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
)

// Problems returns the mistakes that an InvalidArgument of RuleService.Apply
// carries; nil when err carries none.
func Problems(err error) []*Problem {
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return nil
	}
	for _, d := range ce.Details() {
		m, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			continue // a detail of a newer server
		}
		if p, ok := m.(*RuleProblems); ok {
			return p.Problems
		}
	}
	return nil
}
