package builtin

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

func TestEveryMistakeIsNamed(t *testing.T) {
	good := echo("echo-1", "10.0.0.7", "127.0.0.1:8080")
	change := func(f func(*model.Workload)) model.Workload {
		w := good
		w.Inbound = append([]model.Inbound{}, good.Inbound...)
		f(&w)
		return w
	}
	tests := []struct {
		name string
		w    model.Workload
		ttl  time.Duration
		want []string
	}{
		{"nothing is wrong", good, time.Second, nil},
		{"lease too short", good, time.Second - 1, []string{"ttl: 999.999999ms, want 1s to 1h0m0s"}},
		{"lease too long", good, time.Hour + 1, []string{"ttl: 1h0m0.000000001s"}},
		{"all at once", change(func(w *model.Workload) {
			w.Name, w.Address = "", netip.Addr{}
			w.Inbound[0].App = netip.AddrPort{}
			w.Inbound[0].Service = "a b"
		}), time.Minute, []string{`name: is empty`, `address: invalid IP`, `inbound[0].app: is missing`, `inbound[0].service: host "a b"`}},
		{"a name that breaks log lines", change(func(w *model.Workload) { w.Name = "a\nb" }), time.Minute, []string{`name: "a\nb" has '\n'`}},
		{"unspecified address", change(func(w *model.Workload) { w.Address = netip.MustParseAddr("0.0.0.0") }), time.Minute, []string{"address: 0.0.0.0"}},
		{"labels over 1 KiB", change(func(w *model.Workload) {
			w.Labels = model.NewLabels(map[string]string{"a": strings.Repeat("x", 1<<10)})
		}), time.Minute, []string{"labels: 1027 bytes, want at most 1024"}},
		{"labels that are no text", change(func(w *model.Workload) { w.Labels = model.NewLabels(map[string]string{"a": "\xff"}) }), time.Minute, []string{"is no UTF-8"}},
		{"sidecar where the application is", change(func(w *model.Workload) {
			w.Inbound[0].Listen = netip.MustParseAddrPort("0.0.0.0:8080")
		}), time.Minute, []string{"inbound[0].listen: 0.0.0.0:8080 is where the application listens (127.0.0.1:8080)"}},
		{"sidecar at the same port of another address", change(func(w *model.Workload) {
			w.Inbound[0].Listen = netip.MustParseAddrPort("10.0.0.7:8080")
		}), time.Minute, nil},
		{"tcp without a service port", change(func(w *model.Workload) { w.Inbound[0].Protocol = model.TCP }), time.Minute, []string{"inbound[0].servicePort: is 0; tcp has no default"}},
		{"two with one port", change(func(w *model.Workload) { w.Inbound = append(w.Inbound, w.Inbound[0]) }), time.Minute,
			[]string{"inbound[1].app: port 8080 is inbound[0]'s too", "inbound[1].listen: 0.0.0.0:20881 is inbound[0]'s too"}},
		{"an application elsewhere", change(func(w *model.Workload) { w.Inbound[0].App = netip.MustParseAddrPort("10.0.0.8:8080") }), time.Minute,
			[]string{"inbound[0].app: 10.0.0.8:8080 is of another machine, want a loopback address, 0.0.0.0, :: or the workload's 10.0.0.7"}},
		{"an application at the workload's address", change(func(w *model.Workload) { w.Inbound[0].App = netip.MustParseAddrPort("10.0.0.7:8080") }), time.Minute, nil},
		{"an application at every address", change(func(w *model.Workload) { w.Inbound[0].App = netip.MustParseAddrPort("[::]:8080") }), time.Minute, nil},
		{"an application at the IPv6 form of the workload's", change(func(w *model.Workload) {
			w.Inbound[0].App = netip.MustParseAddrPort("[::ffff:10.0.0.7]:8080")
		}), time.Minute, nil},
		{"a sidecar that nobody reaches", change(func(w *model.Workload) { w.Inbound[0].Listen = netip.MustParseAddrPort("[::ffff:127.0.0.1]:20881") }), time.Minute,
			[]string{"inbound[0].listen: 127.0.0.1:20881 is loopback, but the workload is reached at 10.0.0.7"}},
		{"everything on loopback", change(func(w *model.Workload) {
			w.Address, w.Inbound[0].Listen = netip.MustParseAddr("127.0.0.2"), netip.MustParseAddrPort("127.0.0.2:20881")
		}), time.Minute, nil},
		{"an entry that says nothing", change(func(w *model.Workload) {
			w.Inbound[0].Listen, w.Inbound[0].Service = netip.AddrPort{}, ""
		}), time.Minute, []string{"inbound[0].listen: is missing, and so is service"}},
		{"too many ports", change(func(w *model.Workload) { w.Inbound = make([]model.Inbound, maxInbound+1) }), time.Minute, []string{"inbound: 65 ports, want at most 64"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := registry(t, Config{})
			_, err := r.Register(t.Context(), tt.w, tt.ttl)
			if (err != nil) != (tt.want != nil) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			if err == nil {
				return
			}
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v does not wrap ErrInvalid", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not say %q:\n%v", want, err)
				}
			}
			if got := strings.Count(err.Error(), "\n"); got != len(tt.want) {
				t.Errorf("%d mistakes named, want %d:\n%v", got, len(tt.want), err)
			}
		})
	}
}

func TestAddressesAreNormalised(t *testing.T) {
	r := registry(t, Config{})
	w := echo("echo-1", "::ffff:10.0.0.7", "[::ffff:127.0.0.1]:8080")
	w.Inbound[0].Listen = netip.MustParseAddrPort("[::ffff:10.0.0.7]:20881")
	register(t, r, w, time.Minute)
	got := r.List()[0].Workload
	if got.Address.String() != "10.0.0.7" || got.Inbound[0].App.String() != "127.0.0.1:8080" || got.Inbound[0].Listen.String() != "10.0.0.7:20881" {
		t.Errorf("got %v, %+v", got.Address, got.Inbound)
	}
	if w.Inbound[0].App.String() != "[::ffff:127.0.0.1]:8080" {
		t.Error("the caller's workload was modified")
	}
}

func journalSeed() []byte {
	w := echo("echo-1", "10.0.0.7", "127.0.0.1:8080")
	w.Locality, w.Weight, w.Health, w.MeshTLS = model.Locality{Region: "r"}, 7, model.Draining, true
	w.Inbound = append(w.Inbound, model.Inbound{App: netip.MustParseAddrPort("[::1]:9"), Protocol: model.GRPC, Service: "g"})
	rec := record{ID: "A", TTL: 10 * time.Second, Workload: w}
	other := record{ID: "B", TTL: time.Hour, Workload: echo("echo-2", "10.0.0.8", "127.0.0.1:8080")}
	out := append(encodeRecord(&rec), encodeRecord(&other)...)
	return append(out, encodeLine(line{Gone: "echo-2"})...)
}

func TestJournalLosesNothing(t *testing.T) {
	records, lines, torn, err := decodeJournal(journalSeed())
	if err != nil || torn || lines != 3 || len(records) != 1 {
		t.Fatalf("%d records of %d lines, torn %v, %v", len(records), lines, torn, err)
	}
	want := journalSeed()
	want = want[:bytes.IndexByte(want, '\n')+1]
	if d := cmp.Diff(string(want), string(encodeRecord(&records[0]))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, _, torn, err := decodeJournal(want[:len(want)-1]); !torn || err != nil {
		t.Errorf("half a line: torn %v, %v", torn, err)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add(journalSeed())
	f.Add([]byte("{\"gone\":\"a\"}\n{\"id\":\"x\",\"ttl_ms\":1000,\"workload\":{\"name\":\"a\",\"address\":\"\",\"health\":\"new\"}}\nhalf"))
	f.Add([]byte("null\n[]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, _, _, _ := decodeJournal(data)
		var again []byte
		for i := range records {
			again = append(again, encodeRecord(&records[i])...)
		}
		back, lines, torn, err := decodeJournal(again)
		if err != nil || torn || lines != len(records) {
			t.Fatalf("what was written is not read: %v, torn %v, %d lines", err, torn, lines)
		}
		if d := cmp.Diff(records, back, comparers); d != "" {
			t.Fatalf("(-first +second):\n%s", d)
		}
		for i := range records { // must not panic whatever a file holds
			_, _ = check(&records[i].Workload, records[i].TTL)
		}
	})
}

func BenchmarkDecodeJournal(b *testing.B) {
	var data []byte
	for i := range 1000 {
		rec := record{ID: "A", TTL: time.Minute, Workload: echo(fmt.Sprintf("echo-%d", i), "10.0.0.7", "127.0.0.1:8080")}
		data = append(data, encodeRecord(&rec)...)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if records, _, _, err := decodeJournal(data); err != nil || len(records) != 1000 {
			b.Fatal(len(records), err)
		}
	}
}

func BenchmarkRenew(b *testing.B) {
	r, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	var id string
	for i := range 10_000 {
		w := echo(fmt.Sprintf("echo-%d", i), "10.0.0.7", "127.0.0.1:8080")
		if id, err = r.Register(b.Context(), w, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Renew(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}
