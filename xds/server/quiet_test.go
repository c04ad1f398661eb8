package server_test

import "log/slog"

// quietLog keeps warnings about deliberate refusals out of the tests' output.
func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }
