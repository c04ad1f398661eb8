package consul

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

func TestEveryMistakeOfTheConfigurationIsNamed(t *testing.T) {
	_, err := New(Config{
		Addresses: []string{"ftp://x", "ok:1"}, Datacenters: []string{"a", "", "a"}, Consistency: 9, HostTemplate: "{{.Nope}}",
		ServicePorts: map[model.Protocol]uint16{model.HTTP: 0}, Wait: time.Millisecond, Queries: 2, Heartbeat: 1,
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"consul ?: name is empty", `address "ftp://x"`, "datacenters[1] is empty", `datacenters[2]: "a" is there twice`, "consistency: 9",
		"hostTemplate", "servicePorts: http is 0", "wait: 1ms, want 1s to 10m", "queries: 2, want at least 6 for 3 data centres", "heartbeat: 1ns",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q", want)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 10 {
		t.Errorf("%d mistakes, want 10:\n%v", n, err)
	}
}

func TestNameAloneIsEnough(t *testing.T) {
	s, err := New(Config{Name: "consul-main", Token: "top-secret"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Name() != "consul-main" || s.Kind() != "consul" {
		t.Errorf("%s, %s", s.Name(), s.Kind())
	}
}

func TestTokenIsInNoError(t *testing.T) {
	_, err := New(Config{Token: "top-secret", Addresses: []string{"x y"}})
	if err == nil || strings.Contains(err.Error(), "top-secret") {
		t.Error(err)
	}
	if text := fmt.Sprintf("%+v %#v", Config{Token: "top-secret"}, Config{Token: "top-secret"}); strings.Contains(text, "top-secret") {
		t.Error(text)
	}
}

func TestTwoSourcesShareARegisterer(t *testing.T) {
	reg := prometheus.NewRegistry()
	for _, name := range []string{"a", "b"} {
		if _, err := New(Config{Name: name, Registerer: reg}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(Config{Name: "a", Registerer: reg}); err == nil {
		t.Error("the same name twice")
	}
}

func TestHostTemplateRenames(t *testing.T) {
	rules := rulesOf(&Config{HostTemplate: "{{.Service}}.{{.Namespace}}.{{.Datacenter}}.mesh", Namespace: "shop"}, func(f string, a ...any) { t.Errorf(f, a...) })
	if got, err := rules.Host("Cart", "dc1"); err != nil || got != "Cart.shop.dc1.mesh" {
		t.Errorf("%q, %v", got, err)
	}
}

// first keeps what came first and calls done then.
type first struct {
	once sync.Once
	done func()
	u    model.Update
}

func (f *first) Apply(u model.Update)      { f.once.Do(func() { f.u = u; f.done() }) }
func (f *first) Report(model.SourceStatus) {}

func TestSourceReadsOverHTTP(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "7")
		switch {
		case r.URL.Query().Get("index") == "7":
			<-r.Context().Done()
		case r.Header.Get("X-Consul-Token") != "top-secret":
			http.Error(w, "ACL not found", http.StatusForbidden)
		case r.URL.Path == "/v1/catalog/services":
			fmt.Fprint(w, `{"consul":[],"Cart":[]}`)
		default:
			fmt.Fprint(w, `[{"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"c","Service":"Cart","Port":80}}]`)
		}
	}))
	t.Cleanup(s.Close)
	source, err := New(Config{Name: "c", Addresses: []string{s.URL}, Token: "top-secret", HostTemplate: "{{.Service}}.mesh", Protocol: new(model.TCP)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	sink := &first{done: cancel}
	if err := source.Run(ctx, sink); err != nil {
		t.Error(err)
	}
	if len(sink.u.Services) != 1 {
		t.Fatalf("%+v", sink.u)
	}
	got := sink.u.Services[0]
	if got.Host != "cart.mesh" || len(got.Ports) != 1 || got.Ports[0] != (model.Port{Number: 80}) || got.Endpoints[0].Address.String() != "10.0.0.1:80" {
		t.Errorf("%+v", got)
	}
}

func TestConsistencyIsReadFromText(t *testing.T) {
	for text, want := range map[string]Consistency{"": Leader, "default": Leader, "stale": Stale, "consistent": Consistent} {
		var got wire.Consistency
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	var got wire.Consistency
	if err := got.UnmarshalText([]byte("eventual")); err == nil {
		t.Error("accepted")
	}
}
