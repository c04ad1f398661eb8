//go:build integration

package stream_test

import "testing"

// Both ends of 8,000 connections fit the usual limit of 20,000 open files;
// testenv/load measures 15,000 from another process.
func TestManyIdleConnections(t *testing.T)  { idleConnections(t, 8000, 3<<10) }
func TestManyShortConnections(t *testing.T) { shortConnections(t, 100000) }
