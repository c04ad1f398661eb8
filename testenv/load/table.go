package main

import (
	"fmt"
	"io"
	"strings"
)

// writeTable writes a table of Markdown for each benchmark, with a cell of
// "median (min to max)" for each figure, and what became of the targets.
func (r *results) writeTable(w io.Writer) {
	last := ""
	for i, row := range r.rows {
		title := row.title()
		if title != last {
			last = title
			names := r.columns(i)
			fmt.Fprintf(w, "\n%s\n\n| subject | %s |\n|%s\n", title, strings.Join(names, " | "), strings.Repeat(" --- |", len(names)+1))
		}
		fmt.Fprintf(w, "| %s |", row.subject)
		for _, name := range r.columns(i) {
			s := row.get(name)
			switch {
			case s == nil:
				fmt.Fprint(w, " - |")
			case len(s.values) == 1:
				fmt.Fprintf(w, " %s |", text(s.median()))
			default:
				fmt.Fprintf(w, " %s (%s to %s) |", text(s.median()), text(s.min()), text(s.max()))
			}
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
	for _, t := range targets() {
		if line := t.judge(r); line != "" {
			fmt.Fprintln(w, line)
		}
	}
}

func (r *row) title() string {
	if r.connections > 0 {
		return fmt.Sprintf("%s, %d connections", r.bench, r.connections)
	}
	return r.bench
}

// columns are the figures of all subjects in the benchmark of row i.
func (r *results) columns(i int) []string {
	var names []string
	seen := map[string]bool{}
	for _, row := range r.rows {
		if row.title() != r.rows[i].title() {
			continue
		}
		for _, s := range row.series {
			if !seen[s.name] {
				seen[s.name] = true
				names = append(names, s.name)
			}
		}
	}
	return names
}

// target is what a figure of a subject may be at most: so many times that of
// another subject in the same run, or so much where there is none.
type target struct {
	bench          string
	connections    int
	subject, other string
	figure         string
	most           float64
}

func targets() []target {
	const us = "isthmus"
	return []target{
		{bench: saturated, subject: us, other: "haproxy", figure: "cpu_us_per_req", most: 0.9},
		{bench: saturated, subject: us, other: "envoy", figure: "cpu_us_per_req", most: 0.3},
		{bench: saturated, subject: us, other: "haproxy", figure: "p50_us", most: 1},
		{bench: fixed, subject: us, other: "haproxy", figure: "cpu_us_per_req", most: 1},
		{bench: fixed, subject: us, other: "haproxy", figure: "p50_us", most: 1},
		{bench: idleRSS, subject: us, figure: "rss_mib", most: 30},
		{bench: idleConns, connections: 2000, subject: us, figure: "bytes_per_conn", most: 4096},
		{bench: idleConns, connections: 10000, subject: us, figure: "bytes_per_conn", most: 4096},
		{bench: xdsUpdate, subject: us, other: "linearcache", figure: "last_ack_ms_p99", most: 0.5},
		{bench: xdsUpdate, subject: us, other: "linearcache", figure: "cpu_s_per_update", most: 0.5},
		{bench: registryLag, subject: "zookeeper", figure: "p99_ms", most: 100},
		{bench: registryLag, subject: "consul", figure: "p99_ms", most: 150},
	}
}

// judge is one line; empty when it was not measured.
func (t target) judge(r *results) string {
	value := func(subject string) (float64, bool) {
		row := r.find(t.bench, subject, t.connections)
		if row == nil || row.get(t.figure) == nil {
			return 0, false
		}
		return row.get(t.figure).median(), true
	}
	got, measured := value(t.subject)
	if !measured {
		return ""
	}
	what := fmt.Sprintf("%s of %s", t.figure, t.subject)
	if t.other != "" {
		base, measured := value(t.other)
		if !measured {
			return ""
		}
		got /= base
		what = fmt.Sprintf("%s, %s / %s", t.figure, t.subject, t.other)
	}
	verdict := "met"
	if got > t.most {
		verdict = "MISSED"
	}
	bench := t.bench
	if t.connections > 0 {
		bench = fmt.Sprintf("%s %d", t.bench, t.connections)
	}
	return fmt.Sprintf("- %s: %s = %s, at most %s: %s", bench, what, text(got), text(t.most), verdict)
}
