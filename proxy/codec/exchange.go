package codec

import (
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// Session makes the exchanges of one downstream connection.
type Session interface {
	// Open returns an exchange for the next request. Several may be open.
	Open() Exchange
	// Malformed counts a request that was refused before it could be routed.
	Malformed(status int, at clock.Instant)
}

// Exchange is one request and its answer: begun once, ended once. Between the two
// the codec does as the latest Step says. Methods are called by one goroutine at
// a time, and none blocks. A Step is valid until the next call.
type Exchange interface {
	// Begin routes a request whose head was decoded at the given moment.
	Begin(r router.Request, at clock.Instant) *Step
	// Answered judges a response head before any of it went downstream. resend
	// says that the request can be sent once more. It returns Relay or Send.
	Answered(r Response, resend bool, at clock.Instant) *Step
	// Failed judges a failure before anything of a response went downstream. It
	// returns Send, Answer or Abort.
	Failed(f Failure, resend bool, at clock.Instant) *Step
	// End closes the exchange, counts and logs it. The exchange must not be used
	// any more.
	End(e *End)
}

// Response is what an exchange may look at in a response head. Slices are valid
// during the call.
type Response interface {
	Status() int // as of HTTP; codecs of other protocols translate theirs
	// Header returns the value of a field; name is lower case.
	Header(name string) ([]byte, bool)
}

// Action is what to do next.
type Action uint8

// Actions.
const (
	Send   Action = iota // send the request to Step.Host, after Step.Wait
	Relay                // pass the response on
	Answer               // send Step.Reply
	Abort                // end the connection, or the stream, without an answer
)

// Step is a decision with all that is needed to carry it out.
type Step struct {
	Action Action

	// Send.
	Wait     time.Duration // back-off
	Cluster  *upstream.Cluster
	Settings *upstream.Settings
	Host     *upstream.Host
	TryBy    clock.Instant // this attempt must be answered by then; 0: no limit
	Attempt  int           // 1 for the first

	// Set at Begin, the same for every attempt.
	By          clock.Instant     // the response must have ended by then; 0: no limit
	Idle        time.Duration     // of silence; 0: the listener's, below 0: no limit
	Route       *router.Route     // nil for TCP
	Request     *router.HeaderOps // changes to the request; nil: none
	Response    *router.HeaderOps // changes to the response; nil: none
	HostRewrite string            // replaces the authority unless empty
	RequestID   bool              // give the request an x-request-id if it has none

	Reply Reply // Answer
}

// Reply is an answer of our own.
type Reply struct {
	Status      int
	Body        []byte
	ContentType string // empty: no body
	Location    []byte
	Response    *router.HeaderOps // nil: none
}

// Failure is why an attempt brought no response.
type Failure uint8

// Failures.
const (
	None              Failure = iota
	ConnectRefused            // no connection: refused, unreachable
	ConnectTimeout            // no connection in time
	ConnectOverflow           // the cluster's connection limit is reached
	ResetBeforeSent           // died before the request was sent whole, or provably unseen
	Reset                     // died after the request was sent
	BadResponse               // what came is no response
	TryTimeout                // Step.TryBy passed
	Timeout                   // Step.By passed
	IdleTimeout               // Step.Idle passed
	RequestTimeout            // Step.Idle passed while the request was still coming
	DownstreamGone            // the client went away
	DownstreamBroken          // the request's body is malformed
	DownstreamStalled         // the client takes nothing
)

// End is what the codec knows at the end of an exchange.
type End struct {
	At      clock.Instant
	Sent    clock.Instant // the last attempt's request was sent; 0: never
	First   clock.Instant // first byte of the response; 0: none
	Status  int           // sent downstream; 0: none
	Failure Failure       // after the response had begun; None otherwise
	// RequestBytes and ResponseBytes are of bodies; for TCP all bytes.
	RequestBytes, ResponseBytes int64
	// Request is nil when its memory is gone.
	Request                              router.Request
	DownstreamProtocol, UpstreamProtocol string
	Upgraded                             bool
	Flags                                telemetry.Flags // beside those of the exchange
}
