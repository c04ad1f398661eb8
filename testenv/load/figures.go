package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
)

// figure is one measured number.
type figure struct {
	name  string
	value float64
}

// series is one figure over the rounds.
type series struct {
	name   string
	values []float64
}

func (s series) median() float64 {
	all := slices.Sorted(slices.Values(s.values))
	if n := len(all); n%2 == 0 {
		return (all[n/2-1] + all[n/2]) / 2
	}
	return all[len(all)/2]
}

func (s series) min() float64 { return slices.Min(s.values) }
func (s series) max() float64 { return slices.Max(s.values) }

// row is what one subject showed in one benchmark.
type row struct {
	bench, subject string
	// connections tells apart rows of idle_conns; 0 elsewhere.
	connections int
	series      []series
}

// series by name; nil when the row has none.
func (r *row) get(name string) *series {
	for i := range r.series {
		if r.series[i].name == name {
			return &r.series[i]
		}
	}
	return nil
}

// results of all rounds, in the order in which they came first.
type results struct{ rows []*row }

func (r *results) add(bench, subject string, connections int, figures ...figure) {
	into := r.find(bench, subject, connections)
	if into == nil {
		into = &row{bench: bench, subject: subject, connections: connections}
		r.rows = append(r.rows, into)
	}
	for _, f := range figures {
		if s := into.get(f.name); s != nil {
			s.values = append(s.values, f.value)
		} else {
			into.series = append(into.series, series{f.name, []float64{f.value}})
		}
	}
}

func (r *results) find(bench, subject string, connections int) *row {
	for _, row := range r.rows {
		if row.bench == bench && row.subject == subject && row.connections == connections {
			return row
		}
	}
	return nil
}

// order puts rows of one benchmark beside each other.
func (r *results) order(benches, subjects []string) {
	slices.SortStableFunc(r.rows, func(a, b *row) int {
		if d := slices.Index(benches, a.bench) - slices.Index(benches, b.bench); d != 0 {
			return d
		}
		if d := a.connections - b.connections; d != 0 {
			return d
		}
		return slices.Index(subjects, a.subject) - slices.Index(subjects, b.subject)
	})
}

// writeJSON writes one object a line: bench, subject, then the medians of all
// figures, each with its _min and _max.
func (r *results) writeJSON(w io.Writer) error {
	for _, row := range r.rows {
		var line bytes.Buffer
		fmt.Fprintf(&line, `{"bench":%q,"subject":%q`, row.bench, row.subject)
		if row.connections > 0 {
			fmt.Fprintf(&line, `,"connections":%d`, row.connections)
		}
		fmt.Fprintf(&line, `,"rounds":%d`, len(row.series[0].values))
		for _, s := range row.series {
			for _, v := range []figure{{s.name, s.median()}, {s.name + "_min", s.min()}, {s.name + "_max", s.max()}} {
				text, err := json.Marshal(rounded(v.value))
				if err != nil {
					return fmt.Errorf("%s of %s in %s: %w", v.name, row.subject, row.bench, err)
				}
				fmt.Fprintf(&line, ",%q:%s", v.name, text)
			}
		}
		line.WriteString("}\n")
		if _, err := w.Write(line.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// rounded keeps four digits: more are noise.
func rounded(v float64) float64 {
	if v == 0 {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	if math.IsInf(scale, 0) || scale <= 1 {
		return math.Round(v)
	}
	return math.Round(v*scale) / scale
}

func text(v float64) string { return strconv.FormatFloat(rounded(v), 'f', -1, 64) }
