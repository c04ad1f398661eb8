package manage

import "time"

// SetPageBytes makes pages short without much text. Call it before the first request.
func (s *Server) SetPageBytes(n int) { s.pageBytes = n }

// SetBodyTime makes stalling callers wait less. Call it before the first request.
func (s *Server) SetBodyTime(d time.Duration) { s.bodyTime = d }

// RunningCalls is how many calls hold a place among those of rules.
func (s *Server) RunningCalls() int { return len(s.lanes.rules.calls) }

// ArrivingBodies is how many requests are being read.
func (s *Server) ArrivingBodies() int {
	return len(s.lanes.rules.bodies) + len(s.lanes.workloads.bodies)
}
