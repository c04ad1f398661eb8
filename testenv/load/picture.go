package main

import (
	"bytes"
	"fmt"
	"html"
	"os"
	"path/filepath"
)

// panel is one group of bars: a figure of every subject of a benchmark.
type panel struct {
	bench       string
	connections int
	figure      string
	title       string
}

func panels() []panel {
	return []panel{
		{bench: saturated, figure: "rps", title: "HTTP/1.1 saturated: requests a second (more is better)"},
		{bench: saturated, figure: "cpu_us_per_req", title: "HTTP/1.1 saturated: µs of CPU a request (less is better)"},
		{bench: fixed, figure: "cpu_us_per_req", title: "HTTP/1.1 at 4,000 requests/s: µs of CPU a request"},
		{bench: fixed, figure: "p50_us", title: "HTTP/1.1 at 4,000 requests/s: median latency, µs"},
		{bench: fixed, figure: "p99_us", title: "HTTP/1.1 at 4,000 requests/s: 99th percentile, µs"},
		{bench: idleRSS, figure: "rss_mib", title: "Resident memory after the start, MiB"},
		{bench: idleConns, connections: 10000, figure: "bytes_per_conn", title: "Bytes an idle connection, of 10,000"},
		{bench: xdsUpdate, figure: "last_ack_ms_p99", title: "xDS, 1,000 streams: change to last ACK, p99, ms"},
		{bench: xdsUpdate, figure: "cpu_s_per_update", title: "xDS, 1,000 streams: CPU-seconds a change"},
		{bench: registryLag, figure: "p99_ms", title: "Registry change to first request at the endpoint, p99, ms"},
	}
}

// Sizes of the picture, in pixels.
const (
	pictureWidth = 720
	labelWidth   = 100
	barSpace     = 440
	barHeight    = 18
	barPitch     = 24
	titleHeight  = 34
)

// writePicture draws bars of the medians, each with a line from the least to the
// greatest round. Isthmus has a colour of its own.
func (r *results) writePicture(path string) error {
	var body bytes.Buffer
	y := 10
	for _, p := range panels() {
		var rows []*row
		most := 0.0
		for _, row := range r.rows {
			if row.bench == p.bench && row.connections == p.connections && row.get(p.figure) != nil {
				rows = append(rows, row)
				most = max(most, row.get(p.figure).max())
			}
		}
		if len(rows) == 0 || most <= 0 {
			continue
		}
		fmt.Fprintf(&body, `<text class="title" x="10" y="%d">%s</text>`+"\n", y+18, html.EscapeString(p.title))
		y += titleHeight - 6
		for _, row := range rows {
			s := row.get(p.figure)
			x := func(v float64) float64 { return labelWidth + max(0, v)/most*barSpace }
			class := "other"
			if row.subject == "isthmus" {
				class = "own"
			}
			middle := float64(y) + barHeight/2
			fmt.Fprintf(&body, `<text class="label" x="%d" y="%.0f">%s</text>`, labelWidth-6, middle+4, html.EscapeString(row.subject))
			fmt.Fprintf(&body, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d"/>`, class, labelWidth, y, x(s.median())-labelWidth, barHeight)
			fmt.Fprintf(&body, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, x(s.min()), x(s.max()), middle, middle)
			fmt.Fprintf(&body, `<text x="%.1f" y="%.0f">%s</text>`+"\n", x(s.max())+8, middle+4, text(s.median()))
			y += barPitch
		}
		y += 12
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d">`+"\n", pictureWidth, y)
	out.WriteString(`<style>
text { font: 13px sans-serif; fill: #222 }
.title { font-weight: bold }
.label { text-anchor: end }
.own { fill: #1f7a8c }
.other { fill: #b9c4cc }
line { stroke: #333; stroke-width: 1.5 }
</style>
<rect width="100%" height="100%" fill="#fff"/>
`)
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}
