// Package snapshot turns xDS resources into what requests are served by:
// listeners, route tables and clusters.
//
// A Store takes changes by resource type (Apply), refuses what is wrong or not
// implemented with its field path while the last good version goes on serving,
// and publishes listeners behind an atomic pointer. Clusters and route tables are
// replaced in place, so that neither listeners nor connections notice. A listener
// or route table whose dependencies have not arrived waits for them, bounded,
// while its predecessor serves.
//
// What was accepted is kept on disk (Run writes it, Load reads it), so that a
// sidecar starts while its control plane is down.
//
// All methods may be called from any goroutine.
package snapshot
