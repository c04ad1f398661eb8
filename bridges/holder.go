package bridges

import "github.com/isthmus-mesh/isthmus/xds/model"

// Holder is implemented by the Sink that a Supervisor hands to its Source. A
// source that could read all but some services asks it for those, so that its
// Full update names them as they were: a service that cannot be read is
// unknown, not gone.
type Holder interface {
	// Held returns what the mesh holds of this source under host, from an
	// earlier read of this or a former process; nil when it holds nothing. The
	// value must not be modified.
	Held(host model.Host) *model.Service
}
