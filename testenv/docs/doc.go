// Package docs runs the examples of README.md and docs/*.md, so that none can
// rot. It holds tests only.
//
// Each page is one shell session in an empty folder: its sh examples run as they
// stand, in order, in one bash, with the programs in bin/ and on PATH and with
// the ports that the page names, in a network of the test's own. A yaml example
// begins with a comment that names its file; it is written to the folder, and
// what it is for must take it. The table at the head of the test says what a page
// finds running, when a command that goes on in the background (one with & at
// its end) is ready, and what the page must have printed.
package docs
