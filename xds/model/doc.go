// Package model says what a service, an endpoint and a workload are: plain
// values that bridges report, the catalog merges and translators read.
//
// Values are immutable once handed on: whoever receives one may keep it for
// ever, and nobody changes it. The zero value of each type is noted with it.
//
// Decisions on names and merging: xds/RATIONALE.md.
package model
