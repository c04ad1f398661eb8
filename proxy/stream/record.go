package stream

import (
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
)

// record fills the access-log entry of a finished exchange.
func (x *exchange) record(e *codec.End, duration, waited time.Duration) {
	l := &x.entry
	// Cleared and filled in place: a literal would be made beside it and copied.
	*l = telemetry.Entry{}
	l.Start, l.Duration, l.Process, l.Upstream = x.c.Wheel().Time(x.start), duration, duration-waited, waited
	l.Status, l.Flags = e.Status, x.flags|e.Flags|failureFlag(e.Failure)
	l.RequestBytes, l.ResponseBytes, l.Attempts = e.RequestBytes, e.ResponseBytes, x.attempts
	l.DownstreamProtocol = e.DownstreamProtocol
	l.DownstreamLocal, l.DownstreamRemote = x.c.LocalAddr(), x.c.RemoteAddr()
	l.Failed = l.Flags != 0
	if e.Sent != 0 {
		l.ProcessRequest = e.Sent.Sub(x.start)
	}
	if e.First != 0 {
		l.ProcessResponse = e.At.Sub(e.First)
	}
	if x.route != nil {
		l.Route = x.route.Name
	}
	if x.cluster != nil {
		l.Cluster = x.cluster.Name
	}
	if x.host != nil {
		l.UpstreamProtocol = e.UpstreamProtocol
		l.UpstreamHost, l.TargetApp = x.host.Addr, x.host.Workload()
	}
	if r := e.Request; r != nil {
		l.Method, l.Path, l.Authority = r.Method(), r.Path(), r.Authority()
		l.UserAgent, _ = r.Header("user-agent")
		l.ForwardedFor, _ = r.Header("x-forwarded-for")
		l.RequestID, _ = r.Header("x-request-id")
	}
}

// failureFlag is the flag of a failure after the response had begun.
func failureFlag(f codec.Failure) telemetry.Flags {
	switch f {
	case codec.None:
		return 0
	case codec.BadResponse:
		return telemetry.UpstreamProtocolError
	}
	return answers[f].flag
}
