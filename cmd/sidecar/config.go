package main

import (
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/isthmus-mesh/isthmus/cmd/internal/process"
	"github.com/isthmus-mesh/isthmus/proxy/bootstrap"
)

// Config is sidecar.yaml. Every key has a default.
type Config struct {
	bootstrap.Config `yaml:",inline"`
	// API is MeshServer's Mesh API, where the workload is registered when it has
	// inbound ports; "off" registers nothing.
	API string `yaml:"api"`
	// Lease is how long the workload stays registered after its sidecar died
	// without a word.
	Lease time.Duration `yaml:"lease"`
}

const apiOff = "off"

func daemon() process.Daemon[Config] {
	return process.Daemon[Config]{
		Name:  "sidecar",
		About: "the proxy beside one application instance",
		Defaults: func() Config {
			return Config{Config: bootstrap.Defaults(), API: "127.0.0.1:15080", Lease: 15 * time.Second}
		},
		Flags: func(fs *flag.FlagSet, c *Config) {
			fs.StringVar(&c.DataDir, "data-dir", c.DataDir, "`folder` for the last good configuration")
		},
		Check: func(c Config) error {
			err := c.Validate()
			if c.Lease < 3*time.Second || c.Lease > time.Hour {
				err = errors.Join(err, fmt.Errorf("lease: %v, want 3s to 1h", c.Lease))
			}
			return err
		},
		Run: run,
	}
}
