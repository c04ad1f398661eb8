package model_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

func TestParseHost(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     model.Host
		err      string
	}{
		{name: "a Java interface is folded", in: "com.acme.GreetingService", want: "com.acme.greetingservice"},
		{name: "an inner class", in: "com.acme.Outer$Inner", want: "com.acme.outer$inner"},
		{name: "empty", in: "", err: "host is empty"},
		{name: "a space is named with its place", in: "a b", err: `byte 1 is ' '`},
		{name: "a pipe would break cluster names", in: "a|b", err: `byte 1 is '|'`},
		{name: "a comma would break lists", in: "a,b", err: `byte 1 is ','`},
		{name: "an at sign is ours", in: "cart@zk", err: `byte 4 is '@'`},
		{name: "a name starts with a letter or digit", in: "-cart", err: `byte 0 is '-'`},
		{name: "too long", in: strings.Repeat("x", 513), err: "513 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := model.ParseHost(tt.in)
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("ParseHost(%.20q) = %q, %v; want %q, error with %q", tt.in, got, err, tt.want, tt.err)
			}
		})
	}
}

func FuzzLabels(f *testing.F) {
	f.Add("version", "v1", "zone", "")
	f.Add("", "", "a", "=")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		clean := func(s string) string { return strings.ReplaceAll(s, "\x00", "") }
		want := map[string]string{clean(k1): clean(v1)}
		want[clean(k2)] = clean(v2)
		if clean(k1) == clean(k2) {
			return // which of two equal keys wins is not defined
		}
		l := model.NewLabels(map[string]string{k1: v1, k2: v2})
		if d := cmp.Diff(want, l.Map()); d != "" {
			t.Errorf("round trip (-want +got):\n%s", d)
		}
		if l != model.NewLabels(maps.Clone(want)) {
			t.Error("equal sets are not equal Labels")
		}
		if !l.Contains(l) || !l.Contains(model.Labels{}) || l.Len() != len(want) {
			t.Errorf("Contains or Len of %v is wrong", l)
		}
	})
}

func TestLabelsWith(t *testing.T) {
	base := model.NewLabels(map[string]string{"app": "cart", "version": "v1"})
	got := base.With(model.NewLabels(map[string]string{"version": "v2", "zone": "a"}))
	if got.String() != "app=cart,version=v2,zone=a" {
		t.Errorf("got %q", got)
	}
	if base.String() != "app=cart,version=v1" {
		t.Errorf("the base changed: %q", base)
	}
}

func TestProtocol(t *testing.T) {
	for in, want := range map[string]model.Protocol{"": model.TCP, "HTTP": model.HTTP, "https": model.TLS, "tri": model.Triple, "triple": model.Triple, "dubbo": model.Dubbo} {
		if got, err := model.ParseProtocol(in); err != nil || got != want {
			t.Errorf("ParseProtocol(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	if _, err := model.ParseProtocol("thrift"); err == nil || !strings.Contains(err.Error(), "want one of tcp, http") {
		t.Errorf("unknown protocol: %v", err)
	}
	if model.Bolt.DefaultPort() != 12200 || model.TCP.DefaultPort() != 0 {
		t.Error("default ports differ from the documented ones")
	}
}
