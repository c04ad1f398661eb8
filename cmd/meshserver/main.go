// Command meshserver is the control plane: it reads registries and rules and
// serves xDS, status discovery and the Mesh API.
package main

import (
	"context"
	"os"

	"github.com/isthmus-mesh/isthmus/cmd/internal/process"
)

func main() {
	os.Exit(daemon().Main(context.Background(), os.Args[1:], process.Streams{Out: os.Stdout, Err: os.Stderr}))
}
