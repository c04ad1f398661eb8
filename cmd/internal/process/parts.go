package process

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// Part is one running piece of a daemon.
type Part struct {
	Name string // names the part in its error, "xds server"; empty adds nothing
	// Run works until ctx ends and then returns nil, or context.Canceled where the
	// end came in the middle of something.
	Run func(ctx context.Context) error
}

// RunParts runs all parts and waits for all of them. When one fails or returns
// while ctx still holds, the others are stopped; the first error is returned.
func RunParts(ctx context.Context, parts ...Part) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range parts {
		group.Go(func() error {
			err := p.Run(ctx)
			switch {
			case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
				return nil
			case err == nil:
				return fmt.Errorf("%s stopped by itself", p.Name)
			case p.Name == "":
				return err
			}
			return fmt.Errorf("%s: %w", p.Name, err)
		})
	}
	return group.Wait()
}
