// Command sidecar stands beside one application instance: it carries the
// application's calls and, where inbound ports are given, the calls for it.
package main

import (
	"context"
	"os"

	"github.com/isthmus-mesh/isthmus/cmd/internal/process"
)

func main() {
	os.Exit(daemon().Main(context.Background(), os.Args[1:], process.Streams{Out: os.Stdout, Err: os.Stderr}))
}
