// Package e2e proves the straight line on real parts: real registries, real Java
// applications, the built binaries, and an Envoy in a sidecar's place. It holds
// tests only.
package e2e
