//go:build integration

package zookeeper_test

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/bridges/bridgetest"
)

func TestDubboInterfacesPassTheSuite(t *testing.T) { bridgetest.Run(t, harness{dubboLayout{}}) }

func TestSpringServicesPassTheSuite(t *testing.T) { bridgetest.Run(t, harness{springLayout{}}) }
