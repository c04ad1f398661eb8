package wire

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lines reads a file of captured entries, one a line.
func lines(t testing.TB, name string) []string {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []string
	in := bufio.NewScanner(f)
	for in.Scan() {
		out = append(out, in.Text())
	}
	if err := in.Err(); err != nil || len(out) == 0 {
		t.Fatalf("%s: %d lines, %v", name, len(out), err)
	}
	return out
}

// same compares addresses by value and takes nil for empty.
func same() cmp.Options {
	return cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}), cmpopts.EquateEmpty()}
}

func provider(text string) string { return url.QueryEscape(text) }

func TestCapturedProvidersAreRead(t *testing.T) {
	for _, line := range lines(t, "providers.txt") {
		p, err := ParseProvider(line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		port := map[string]uint16{"dubbo": p.Address.Port(), "tri": 50051}[p.Protocol]
		weight, stated, err := p.Weight()
		if p.Address.Addr() != netip.MustParseAddr("127.0.0.1") || p.Address.Port() != port || p.Interface() != "lab.GreetingService" ||
			!p.Enabled() || stated || weight != 0 || err != nil || p.Registered().Year() != 2026 || !strings.HasPrefix(p.Params["application"], "greeting-provider") {
			t.Errorf("%s: got %+v, registered %v", line, p, p.Registered())
		}
		if again := p.Encode(); again != line {
			t.Errorf("encoded again:\n got %s\nwant %s", again, line)
		}
	}
}

func TestParseProvider(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, tt := range []struct {
		name, node string
		want       Provider
	}{
		{
			"group, version, tag and weight", provider("dubbo://10.1.2.3:20880/com.acme.Cart?group=g&version=1.0.0&dubbo.tag=gray&weight=50"),
			Provider{"dubbo", at("10.1.2.3:20880"), "com.acme.Cart", map[string]string{"group": "g", "version": "1.0.0", "dubbo.tag": "gray", "weight": "50"}},
		},
		{"upper case protocol", provider("DUBBO://10.1.2.3:1/x"), Provider{"dubbo", at("10.1.2.3:1"), "x", map[string]string{}}},
		{"no path", provider("tri://10.1.2.3:1?a=b"), Provider{"tri", at("10.1.2.3:1"), "", map[string]string{"a": "b"}}},
		{"a path with folders", provider("rest://10.1.2.3:1/api/cart?a=b"), Provider{"rest", at("10.1.2.3:1"), "api/cart", map[string]string{"a": "b"}}},
		{"IPv6 in brackets", provider("dubbo://[2001:db8::1]:20880/x"), Provider{"dubbo", at("[2001:db8::1]:20880"), "x", map[string]string{}}},
		{"IPv6 without brackets", provider("dubbo://2001:db8::1:20880/x"), Provider{"dubbo", at("[2001:db8::1]:20880"), "x", map[string]string{}}},
		{"IPv4 in IPv6", provider("dubbo://[::ffff:10.1.2.3]:20880/x"), Provider{"dubbo", at("10.1.2.3:20880"), "x", map[string]string{}}},
		{"localhost", provider("dubbo://LocalHost:20880/x"), Provider{"dubbo", at("127.0.0.1:20880"), "x", map[string]string{}}},
		{"user and password are dropped", provider("dubbo://me:secret@10.1.2.3:1/x"), Provider{"dubbo", at("10.1.2.3:1"), "x", map[string]string{}}},
		{"plus is a space", "dubbo%3A%2F%2F10.1.2.3%3A1%2Fx%3Fa%3Db+c", Provider{"dubbo", at("10.1.2.3:1"), "x", map[string]string{"a": "b c"}}},
		{"escaped twice is decoded once", "dubbo%3A%2F%2F10.1.2.3%3A1%2Fx%3Fa%3D%252F", Provider{"dubbo", at("10.1.2.3:1"), "x", map[string]string{"a": "%2F"}}},
		{"the last of two equal keys holds", provider("dubbo://10.1.2.3:1/x?a=1&a=2"), Provider{"dubbo", at("10.1.2.3:1"), "x", map[string]string{"a": "2"}}},
		{"a key without a value is its value", provider("dubbo://10.1.2.3:1/x?a&&=z"), Provider{"dubbo", at("10.1.2.3:1"), "x", map[string]string{"a": "a"}}},
		{
			"a default stands in where there is no own", provider("dubbo://10.1.2.3:1/x?default.group=d&default.weight=7&weight=9"),
			Provider{"dubbo", at("10.1.2.3:1"), "x", map[string]string{"default.group": "d", "group": "d", "default.weight": "7", "weight": "9"}},
		},
		{"not ASCII", provider("dubbo://10.1.2.3:1/x?owner=Jürgen"), Provider{"dubbo", at("10.1.2.3:1"), "x", map[string]string{"owner": "Jürgen"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseProvider(tt.node)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got, same()); d != "" {
				t.Errorf("provider (-want +got):\n%s", d)
			}
		})
	}
}

func TestParseProviderRefuses(t *testing.T) {
	for _, tt := range []struct{ name, node, want string }{
		{"nothing", "", "does not start with a protocol"},
		{"no URL", "hello", "does not start with a protocol"},
		{"no protocol", provider("://10.1.2.3:1/x"), "does not start with a protocol"},
		{"an odd protocol", provider("du bbo://10.1.2.3:1/x"), "does not start with a protocol"},
		{"a half escape", "dubbo%3A%2", "not escaped as a URL"},
		{"a wrong escape", "dubbo%3A%2F%2F10.1.2.3%zz", "not escaped as a URL"},
		{"port 0", provider("dubbo://10.1.2.3:0/x"), "port 0, want 1 to 65535"},
		{"port 70000", provider("dubbo://10.1.2.3:70000/x"), "port 70000, want 1 to 65535"},
		{"a negative port", provider("dubbo://10.1.2.3:-1/x"), "port -1, want 1 to 65535"},
		{"an endless port", provider("dubbo://10.1.2.3:99999999999999999999/x"), "want 1 to 65535"},
		{"a port of letters", provider("dubbo://10.1.2.3:http/x"), `port "http"`},
		{"no port", provider("dubbo://10.1.2.3/x"), `"10.1.2.3" has no port`},
		{"IPv6 and no port", provider("dubbo://[2001:db8::1]/x"), "has no port"},
		{"no address", provider("dubbo://:20880/x"), "address is empty"},
		{"a host name", provider("dubbo://db.internal:20880/x"), `"db.internal" is a host name, which is not resolved`},
		{"any address", provider("dubbo://0.0.0.0:20880/x"), "means no particular host"},
		{"any IPv6 address", provider("dubbo://[::]:20880/x"), "means no particular host"},
		{"a group of hosts", provider("dubbo://224.5.6.7:1234/x"), "multicast"},
		{"a zone", provider("dubbo://[fe80::1%eth0]:20880/x"), "has a zone"},
		{"address and port wrong", provider("dubbo://a b:0/x"), "host name"},
		{"a line break", provider("dubbo://10.1.2.3:1/x?a=b\nc"), `control character '\n'`},
		{"a NUL", provider("dubbo://10.1.2.3:1/x?a=b\x00c"), "control character"},
		{"not UTF-8", "dubbo%3A%2F%2F10.1.2.3%3A1%2Fx%3Fa%3D%ff", "not UTF-8"},
		{"too long", provider("dubbo://10.1.2.3:1/x?methods=" + strings.Repeat("m,", 1<<19)), "bytes, want at most 131072"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseProvider(tt.node)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want an error with %q", err, tt.want)
			}
			checkErrorText(t, err)
		})
	}
}

// checkErrorText demands that an error can be shown in a table.
func checkErrorText(t *testing.T, err error) {
	t.Helper()
	text := strings.ReplaceAll(err.Error(), "\n", "; ") // joined errors
	if len(text) > 2048 || checkText("error", text) != nil {
		t.Errorf("error of %d bytes is not fit to show: %.200q", len(text), text)
	}
}

func TestProviderWeight(t *testing.T) {
	for _, tt := range []struct {
		text   string
		want   uint32
		stated bool
		fails  bool
	}{
		{"", 0, false, false},
		{"0", 0, true, false},
		{"100000", 100000, true, false},
		{"100001", 0, true, true},
		{"-1", 0, true, true},
		{"a lot", 0, true, true},
	} {
		got, stated, err := Provider{Params: map[string]string{"weight": tt.text}}.Weight()
		if got != tt.want || stated != tt.stated || (err != nil) != tt.fails {
			t.Errorf("weight %q: got %d, %v, %v", tt.text, got, stated, err)
		}
		got, stated, err = Instance{Metadata: map[string]string{"weight": tt.text}}.Weight()
		if got != tt.want || stated != tt.stated || (err != nil) != tt.fails {
			t.Errorf("metadata weight %q: got %d, %v, %v", tt.text, got, stated, err)
		}
	}
}

func TestProviderSwitches(t *testing.T) {
	for text, want := range map[string]bool{
		"": true, "enabled=true": true, "enabled=false": false, "enabled=FALSE": false, "disabled=true": false, "disabled=false": true, "enabled=0": true,
	} {
		if got := (Provider{Params: parseParams(text)}).Enabled(); got != want {
			t.Errorf("%q: enabled %v, want %v", text, got, want)
		}
	}
	for text, want := range map[string]time.Time{
		"": {}, "soon": {}, "-1": {}, "0": {}, "9223372036854775807": {}, "1795361611901": time.UnixMilli(1795361611901).UTC(),
	} {
		if got := (Provider{Params: map[string]string{"timestamp": text}}).Registered(); !got.Equal(want) {
			t.Errorf("timestamp %q: registered %v, want %v", text, got, want)
		}
	}
	if got := (Provider{Path: "a.B"}).Interface(); got != "a.B" {
		t.Errorf("interface %q, want the path", got)
	}
}

func TestCapturedInstancesAreRead(t *testing.T) {
	seen := map[Class]int{}
	for _, line := range lines(t, "instances.txt") {
		i, err := ParseInstance([]byte(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		seen[i.Class]++
		if i.Address != netip.MustParseAddr("127.0.0.1") || i.Port == 0 || i.SSLPort != 0 || i.Status() != "UP" || !i.Enabled || i.Registered.Year() != 2026 ||
			!strings.HasPrefix(i.Name, "greeting-") || i.ID == "" || len(i.Metadata) == 0 {
			t.Errorf("%s: got %+v", line, i)
		}
	}
	if seen[ClassSpring] != 2 || seen[ClassDubbo] < 4 || len(seen) != 2 {
		t.Errorf("classes %v", seen)
	}
}

func spring(body string) string {
	return `{"name":"cart","id":"1","address":"10.1.2.3","payload":{"@class":"` + string(ClassSpring) + `","id":"cart","name":"cart","metadata":{"instance_status":"UP"}},` +
		body + `,"serviceType":"DYNAMIC","uriSpec":null}`
}

func TestParseInstance(t *testing.T) {
	ip := netip.MustParseAddr("10.1.2.3")
	meta := map[string]string{"instance_status": "UP"}
	for _, tt := range []struct {
		name, data string
		want       Instance
	}{
		{"a plain port", spring(`"port":80,"sslPort":null`), Instance{Name: "cart", ID: "1", Address: ip, Port: 80, Class: ClassSpring, Metadata: meta, Enabled: true}},
		{"TLS alone", spring(`"sslPort":443`), Instance{Name: "cart", ID: "1", Address: ip, SSLPort: 443, Class: ClassSpring, Metadata: meta, Enabled: true}},
		{
			"both, and a time", spring(`"port":80,"sslPort":443,"registrationTimeUTC":1795364022670`),
			Instance{Name: "cart", ID: "1", Address: ip, Port: 80, SSLPort: 443, Class: ClassSpring, Metadata: meta, Enabled: true, Registered: time.UnixMilli(1795364022670).UTC()},
		},
		{"switched off", spring(`"port":80,"enabled":false`), Instance{Name: "cart", ID: "1", Address: ip, Port: 80, Class: ClassSpring, Metadata: meta}},
		{"an absurd time", spring(`"port":80,"registrationTimeUTC":-5`), Instance{Name: "cart", ID: "1", Address: ip, Port: 80, Class: ClassSpring, Metadata: meta, Enabled: true}},
		{"no payload", `{"address":"10.1.2.3","port":80,"payload":null}`, Instance{Address: ip, Port: 80, Enabled: true}},
		{"IPv6", `{"address":"2001:db8::1","port":80}`, Instance{Address: netip.MustParseAddr("2001:db8::1"), Port: 80, Enabled: true}},
		{"IPv6 in brackets", `{"address":"[2001:db8::1]","port":80}`, Instance{Address: netip.MustParseAddr("2001:db8::1"), Port: 80, Enabled: true}},
		{"localhost", `{"address":"localhost","port":80}`, Instance{Address: netip.MustParseAddr("127.0.0.1"), Port: 80, Enabled: true}},
		{
			"metadata of other kinds", `{"address":"10.1.2.3","port":80,"payload":{"metadata":{"n":7,"b":true,"z":null,"@class":"java.util.HashMap"}}}`,
			Instance{Address: ip, Port: 80, Enabled: true, Metadata: map[string]string{"n": "7", "b": "true", "z": ""}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseInstance([]byte(tt.data))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got, same()); d != "" {
				t.Errorf("instance (-want +got):\n%s", d)
			}
		})
	}
}

func TestParseInstanceRefuses(t *testing.T) {
	for _, tt := range []struct{ name, data, want string }{
		{"nothing", "", "not an instance"},
		{"blanks", " \n", "not an instance"},
		{"an IP, as ZooKeeper's clients leave it in folders", "127.0.0.1", "not a Curator instance"},
		{"half an object", `{"name":"cart"`, "not a Curator instance"},
		{"a list", `[1]`, "not a Curator instance"},
		{"no port", spring(`"port":null`), "neither port nor sslPort"},
		{"port 0", spring(`"port":0`), "port: port 0, want 1 to 65535"},
		{"port 70000", spring(`"port":70000`), "port: port 70000"},
		{"TLS port 70000", spring(`"port":1,"sslPort":70000`), "sslPort: port 70000"},
		{"a port of letters", spring(`"port":"http"`), `"port" is a JSON string`},
		{"a fraction of a port", spring(`"port":1.5`), `"port" is a JSON number`},
		{"a host name", `{"address":"cart.internal","port":80}`, `"cart.internal" is a host name`},
		{"no address", `{"port":80}`, "address is empty"},
		{"metadata that is a list", `{"address":"10.1.2.3","port":80,"payload":{"metadata":[1]}}`, "payload"},
		{"metadata in metadata", `{"address":"10.1.2.3","port":80,"payload":{"metadata":{"a":{"b":1}}}}`, "want a string"},
		{"a payload that is text", `{"address":"10.1.2.3","port":80,"payload":"x"}`, "payload"},
		{"a control character in metadata", `{"address":"10.1.2.3","port":80,"payload":{"metadata":{"a":"b\u0000"}}}`, "control character"},
		{"a control character in a key", `{"address":"10.1.2.3","port":80,"payload":{"metadata":{"a\n":"b"}}}`, "control character"},
		{"a control character in the id", `{"id":"\u001b[2J","address":"10.1.2.3","port":80}`, "control character"},
		{"two mistakes, the second", `{"address":"nowhere","port":0}`, "port 0"},
		{"too long", spring(`"port":80,"x":"` + strings.Repeat("y", 1<<20) + `"`), "bytes, want at most 1048576"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseInstance([]byte(tt.data))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want an error with %q", err, tt.want)
			}
			checkErrorText(t, err)
		})
	}
}

func TestPublicShowsProtocolAddressAndInterfaceOnly(t *testing.T) {
	for _, tt := range []struct{ name, node, want string }{
		{"all of it", provider("dubbo://me:pw@10.1.2.3:1/a.Cart?token=t&x=y@z"), "dubbo://10.1.2.3:1/a.Cart"},
		{"without a path", provider("tri://10.1.2.3:1?token=t"), "tri://10.1.2.3:1"},
		{"not escaped", "dubbo://me:pw@10.1.2.3:1/a.Cart?token=t", "dubbo://10.1.2.3:1/a.Cart"},
		{"escaped twice", provider(provider("dubbo://me:pw@10.1.2.3:1/a.Cart?token=t")), "dubbo://10.1.2.3:1/a.Cart"},
		{"a wrong escape", provider("dubbo://10.1.2.3:1/a.Cart?token=t") + "%zz", "dubbo://10.1.2.3:1/a.Cart"},
		{"IPv6", provider("dubbo://[2001:db8::1]:1/x?a=b"), "dubbo://[2001:db8::1]:1/x"},
		{"a slash in the password", provider("dubbo://me:p/w@10.1.2.3:1/x"), "dubbo://..."},
		{"a question mark in the password", provider("dubbo://me:p?w@10.1.2.3:1/x"), "dubbo://..."},
		{"no URL", "broken%zz", "broken%zz"},
		{"no protocol", "me:pw@10.1.2.3:1?token=t", "10.1.2.3:1"},
		{"nothing", "", ""},
	} {
		if got := Public(tt.node); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestAWrongInstanceStillNamesItsClass(t *testing.T) {
	i, err := ParseInstance([]byte(strings.ReplaceAll(spring(`"port":0`), string(ClassSpring), string(ClassDubbo))))
	if err == nil || i.Class != ClassDubbo {
		t.Errorf("got class %q, %v", i.Class, err)
	}
}

func TestALargeInstanceIsRead(t *testing.T) {
	big := strings.Repeat("m", 900<<10)
	i, err := ParseInstance([]byte(strings.Replace(spring(`"port":80`), `"UP"`, `"UP","big":"`+big+`"`, 1)))
	if err != nil || i.Metadata["big"] != big {
		t.Errorf("got %d bytes, %v", len(i.Metadata["big"]), err)
	}
}

func FuzzParseProvider(f *testing.F) {
	for _, line := range lines(f, "providers.txt") {
		f.Add(line)
	}
	for _, text := range []string{
		"dubbo://[2001:db8::1]:20880/x?a=b", "dubbo://a:b@10.0.0.1:1/x?default.a=1&a", "tri://10.0.0.1:0", "x://10.0.0.1:1/?a=%2526&b=+",
	} {
		f.Add(provider(text))
	}
	f.Fuzz(func(t *testing.T, node string) {
		p, err := ParseProvider(node)
		if err != nil {
			checkErrorText(t, err)
			return
		}
		if p.Address.Port() == 0 || !p.Address.Addr().IsValid() || p.Protocol == "" || p.Params == nil {
			t.Errorf("no endpoint: %+v", p)
		}
		again, err := ParseProvider(p.Encode())
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if d := cmp.Diff(p, again, same()); d != "" {
			t.Errorf("round trip (-first +second):\n%s", d)
		}
	})
}

func FuzzParseInstance(f *testing.F) {
	for _, line := range lines(f, "instances.txt") {
		f.Add([]byte(line))
	}
	f.Add([]byte(spring(`"port":80,"sslPort":443,"enabled":false`)))
	f.Add([]byte(`{"address":"::1","port":1,"payload":{"metadata":{"n":7,"b":true,"z":null}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := ParseInstance(data)
		if err != nil {
			checkErrorText(t, err)
			return
		}
		if i.Port == 0 && i.SSLPort == 0 || !i.Address.IsValid() {
			t.Errorf("no endpoint: %+v", i)
		}
		text, err := i.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseInstance(text)
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v in %s", err, text)
		}
		if d := cmp.Diff(i, again, same()); d != "" {
			t.Errorf("round trip (-first +second):\n%s", d)
		}
	})
}

func TestEncodedInstanceHasCuratorsShape(t *testing.T) {
	i := Instance{
		Name: "cart", ID: "7", Address: netip.MustParseAddr("10.1.2.3"), Port: 80, Class: ClassSpring, Enabled: true,
		Metadata: map[string]string{"instance_status": "UP"}, Registered: time.UnixMilli(1795364022670),
	}
	text, err := i.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var got, captured map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for _, line := range lines(t, "instances.txt") {
		if strings.Contains(line, string(ClassSpring)) {
			if err := json.Unmarshal([]byte(line), &captured); err != nil {
				t.Fatal(err)
			}
		}
	}
	if d := cmp.Diff(keys(captured), keys(got)); d != "" {
		t.Errorf("fields (-captured +encoded):\n%s", d)
	}
}

func keys(m map[string]any) map[string]bool {
	out := map[string]bool{}
	for k := range maps.Keys(m) {
		out[k] = true
	}
	return out
}

func BenchmarkParseProvider(b *testing.B) {
	line := lines(b, "providers.txt")[0]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseProvider(line); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseInstance(b *testing.B) {
	data := []byte(lines(b, "instances.txt")[0])
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseInstance(data); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleProvider_Encode() {
	p := Provider{Protocol: "dubbo", Address: netip.MustParseAddrPort("10.1.2.3:20880"), Path: "com.acme.Cart", Params: map[string]string{"version": "1.0.0"}}
	fmt.Println(p.Encode())
	// Output: dubbo%3A%2F%2F10.1.2.3%3A20880%2Fcom.acme.Cart%3Fversion%3D1.0.0
}
