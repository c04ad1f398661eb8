package bridges

import (
	"context"
	"slices"
	"strings"

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
	// read: unknown is not empty. The first Apply of each Run is Full,
	// but for a source that lost a part of its own state: until it is whole
	// again such a one may apply what it has, in updates that remove nothing.
	Run(ctx context.Context, sink Sink) error
}

// IsSecret reports whether metadata of that key is a credential by its name, in
// whatever spelling ("accessKey", "user.password", "access_token"). Sources make no
// label of it: labels go to every proxy and into every table.
func IsSecret(key string) bool {
	bare := strings.NewReplacer("-", "", "_", "", ".", "").Replace(strings.ToLower(key))
	return slices.ContainsFunc(secretEndings(), func(end string) bool { return strings.HasSuffix(bare, end) })
}

func secretEndings() []string {
	return []string{"token", "username", "password", "passwd", "secret", "accesskey", "secretkey", "privatekey", "apikey", "credential", "credentials"}
}

// Sink takes what a source read. The catalog's per-source handle implements it;
// calls are serialised by the source.
type Sink interface {
	Apply(model.Update)
	Report(model.SourceStatus)
}
