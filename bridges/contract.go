package bridges

import (
	"context"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Source reads one registry and reports what it holds. Many implement it; each
// passes bridgetest.Run against the real server.
type Source interface {
	// Name is unique in the mesh, "zk-main"; Kind is the sort of registry.
	Name() string
	Kind() string
	// Run reads until ctx ends or the registry can no longer be followed, and
	// returns the reason (nil when ctx ended it). Supervise calls it again
	// after a back-off, so that Run need not retry a lost connection by itself,
	// though it may. Whatever fails, Run never reports a deletion it did not
	// read: unknown is not empty. The first Apply of each Run is Full.
	Run(ctx context.Context, sink Sink) error
}

// Sink takes what a source read. The catalog's per-source handle implements it;
// calls are serialised by the source.
type Sink interface {
	Apply(model.Update)
	Report(model.SourceStatus)
}
