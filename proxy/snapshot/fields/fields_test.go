package fields

import (
	"errors"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var set = Parse(`
envoy.config.listener.v3.Listener: name address filter_chains metadata listener_filters_timeout

envoy.config.core.v3.Address: socket_address
envoy.config.core.v3.SocketAddress: address
envoy.config.core.v3.Metadata: *
envoy.config.listener.v3.FilterChain: filters
envoy.config.listener.v3.Filter: name typed_config
envoy.config.core.v3.DataSource: inline_string
`)

func packed(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func chain(a *anypb.Any) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: a}}}}
}

func TestCheck(t *testing.T) {
	unknown := &corev3.DataSource{}
	if err := proto.Unmarshal([]byte{0xf8, 0x7f, 1}, unknown); err != nil { // field 2047
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		m    *listenerv3.Listener
		want string
	}{
		{"listed fields pass, defaults too", &listenerv3.Listener{
			Name:                   "l",
			Address:                &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "a"}}},
			ListenerFiltersTimeout: durationpb.New(1),
			Metadata:               &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"x": {Fields: map[string]*structpb.Value{"a": structpb.NewBoolValue(true)}}}},
			FilterChains:           []*listenerv3.FilterChain{chain(packed(t, &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "s"}}))},
			DrainType:              listenerv3.Listener_DEFAULT,
		}, ""},
		{"others are refused, in the order of the message", &listenerv3.Listener{
			StatPrefix: "x", UseOriginalDst: wrapperspb.Bool(false),
			Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "p"}}},
		}, "address.pipe: not implemented\nstat_prefix: not implemented\nuse_original_dst: not implemented"},
		{"within an Any", &listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{{}, chain(packed(t, &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: "f"}}))}},
			"filter_chains[1].filters[0].typed_config.filename: not implemented"},
		{"an Any of another type", &listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{chain(packed(t, &corev3.Pipe{}))}},
			"filter_chains[0].filters[0].typed_config: envoy.config.core.v3.Pipe is not implemented"},
		{"an Any that is none", &listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{chain(&anypb.Any{TypeUrl: "type.googleapis.com/envoy.config.core.v3.DataSource", Value: []byte{0xff}})}},
			"filter_chains[0].filters[0].typed_config: proto:\u00a0cannot parse invalid wire-format data"},
		{"a field of a later version", &listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{chain(packed(t, unknown))}},
			"filter_chains[0].filters[0].typed_config: has fields that this version does not know"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := set.Check(tt.m); err != nil {
				got = err.Error()
			}
			// The protobuf runtime varies the space after its prefix on purpose.
			got, want := strings.ReplaceAll(got, "proto: ", "proto:\u00a0"), tt.want
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("mistakes (-want +got):\n%s", d)
			}
		})
	}
}

func TestReportsAreBounded(t *testing.T) {
	m := &listenerv3.Listener{}
	for range 1000 {
		m.FilterChains = append(m.FilterChains, &listenerv3.FilterChain{Name: "x"})
	}
	lines := strings.Split(set.Check(m).Error(), "\n")
	if len(lines) != maxErrors+1 || !strings.HasSuffix(lines[maxErrors], "more was not looked at") {
		t.Errorf("got %d lines, the last %q", len(lines), lines[len(lines)-1])
	}
}

func TestAtPrefixesEveryError(t *testing.T) {
	err := At("a", errors.Join(Errorf("b", "x"), errors.Join(Errorf("[1].c", "y"), errors.New("plain"))))
	if d := cmp.Diff("a.b: x\na[1].c: y\na: plain", err.Error()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if At("a", nil) != nil {
		t.Error("no error became one")
	}
}

func FuzzCheck(f *testing.F) {
	seed, err := proto.Marshal(&listenerv3.Listener{Name: "l", FilterChains: []*listenerv3.FilterChain{chain(packed(f, &corev3.DataSource{}))}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var m listenerv3.Listener
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		first, second := set.Check(&m), set.Check(&m)
		if (first == nil) != (second == nil) || first != nil && first.Error() != second.Error() {
			t.Fatalf("two reports of one message differ: %v, %v", first, second)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	m := &listenerv3.Listener{Name: "l"}
	for range 50 {
		m.FilterChains = append(m.FilterChains, &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{Name: "f"}}})
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := set.Check(m); err != nil {
			b.Fatal(err)
		}
	}
}
