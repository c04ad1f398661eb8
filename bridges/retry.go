package bridges

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff yields waits that double from Low to High, each shortened at random by
// up to a half, so that many clients of one registry do not come back as one.
// A zero Low or High means 100 ms and 5 s: a registry that returns is read within
// seconds, and one attempt is a mere dial. Not for use by several goroutines.
type Backoff struct {
	Low, High time.Duration
	next      time.Duration
}

// Default bounds of a Backoff.
const (
	backoffLow  = 100 * time.Millisecond
	backoffHigh = 5 * time.Second
)

// Next returns the wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	low, high := b.Low, b.High
	if low <= 0 {
		low = backoffLow
	}
	if high <= 0 {
		high = backoffHigh
	}
	wait := min(max(b.next, low), high)
	b.next = min(wait*2, high)
	return wait - rand.N(wait/2+1)
}

// Reset starts again at Low.
func (b *Backoff) Reset() { b.next = 0 }

// Retry calls try until it returns nil or ctx ends, waiting as a Backoff from low
// to high between attempts. It returns nil, or the last error of try.
func Retry(ctx context.Context, low, high time.Duration, try func(context.Context) error) error {
	backoff := Backoff{Low: low, High: high}
	for {
		err := try(ctx)
		if err == nil || !sleep(ctx, backoff.Next()) {
			return err
		}
	}
}

// sleep waits for d and reports whether ctx lasted that long.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
