package main

import (
	"flag"

	"github.com/isthmus-mesh/isthmus/cmd/internal/process"
	"github.com/isthmus-mesh/isthmus/proxy/bootstrap"
)

func daemon() process.Daemon[bootstrap.Config] {
	return process.Daemon[bootstrap.Config]{
		Name:     "sidecar",
		About:    "the proxy beside one application instance",
		Defaults: bootstrap.Defaults,
		Flags: func(fs *flag.FlagSet, c *bootstrap.Config) {
			fs.StringVar(&c.DataDir, "data-dir", c.DataDir, "`folder` for the last good configuration")
		},
		Parse: bootstrap.Parse,
		Check: func(c bootstrap.Config) error { return c.Validate() },
		Run:   run,
	}
}
