package zookeeper

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/bridges/zookeeper/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewFillsDefaults(t *testing.T) {
	both := []watch.Root{{Layout: watch.Dubbo, Path: "/dubbo"}, {Layout: watch.Spring, Path: "/services"}}
	for _, tt := range []struct {
		name string
		cfg  Config
		want watch.Config
	}{
		{
			"a server alone", Config{Servers: []string{"zk1"}},
			watch.Config{Servers: []string{"zk1:2181"}, Roots: both, Namespace: "default", SessionTimeout: 10 * time.Second},
		},
		{
			"an ensemble in one string with a chroot", Config{Servers: []string{"a:1, b:2,[::1]:3/prod/eu/"}},
			watch.Config{
				Servers: []string{"a:1", "b:2", "[::1]:3"}, Chroot: "/prod/eu", Namespace: "default", SessionTimeout: 10 * time.Second,
				Roots: []watch.Root{{Layout: watch.Dubbo, Path: "/prod/eu/dubbo"}, {Layout: watch.Spring, Path: "/prod/eu/services"}},
			},
		},
		{
			"everything set", Config{
				Servers: []string{"a", "[::1]"}, DubboRoots: []string{"gray", "/dubbo/"}, SpringRoots: []string{}, Namespace: "shop",
				SessionTimeout: 2 * time.Second, Auth: []Auth{{Scheme: "digest", Credential: "u:p"}}, ServicePorts: map[string]uint16{"RMI": 1099},
			},
			watch.Config{
				Servers: []string{"a:2181", "[::1]:2181"}, Namespace: "shop", SessionTimeout: 2 * time.Second, Auth: []Auth{{Scheme: "digest", Credential: "u:p"}},
				Roots: []watch.Root{{Layout: watch.Dubbo, Path: "/gray"}, {Layout: watch.Dubbo, Path: "/dubbo"}}, ServicePorts: map[string]uint16{"rmi": 1099},
			},
		},
		{
			"the root of a chroot", Config{Servers: []string{"a/prod"}, DubboRoots: []string{}, SpringRoots: []string{"/"}},
			watch.Config{
				Servers: []string{"a:2181"}, Chroot: "/prod", Namespace: "default", SessionTimeout: 10 * time.Second,
				Roots: []watch.Root{{Layout: watch.Spring, Path: "/prod"}},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Name = "zk"
			s, err := New(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, s.cfg, cmpopts.IgnoreFields(watch.Config{}, "Log"), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("config (-want +got):\n%s", d)
			}
			if s.Name() != "zk" || s.Kind() != "zookeeper" || s.cfg.Log == nil {
				t.Errorf("name %q, kind %q", s.Name(), s.Kind())
			}
		})
	}
}

func TestNewReportsEveryMistake(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		want []string
	}{
		{"nothing", Config{}, []string{"name is empty", "servers: none given"}},
		{
			"all at once", Config{
				Servers: []string{"a:0", "b:70000", "::1:2181", "c", "c:2181", "u@d", "x:1/../y"}, DubboRoots: []string{"a//b", "x", "/x/y"},
				SessionTimeout: time.Millisecond, Auth: []Auth{{Scheme: "digest"}}, ServicePorts: map[string]uint16{"rmi": 0},
			},
			[]string{
				`"a:0"`, `"b:70000"`, `"::1:2181": want host:port, IPv6 in brackets`, "c:2181 stands twice", `"u@d"`, `chroot "/../y"`, `dubboRoots[0]: "/a//b"`,
				"dubboRoots[2]", "overlap", "sessionTimeout: 1ms, want at least 1s", "auth[0]", `servicePorts: "rmi": 0`,
			},
		},
		{"nothing to follow", Config{Name: "zk", Servers: []string{"a"}, DubboRoots: []string{}, SpringRoots: []string{}}, []string{"nothing to follow"}},
		{"a chroot before the last server", Config{Name: "zk", Servers: []string{"a/prod", "b"}}, []string{"it stands once, after the last server"}},
		{"a control character", Config{Name: "zk", Servers: []string{"a"}, SpringRoots: []string{"/a\x01"}}, []string{`springRoots[0]: "/a\x01": character`}},
		{"the same root twice", Config{Name: "zk", Servers: []string{"a"}, SpringRoots: []string{"/dubbo"}}, []string{"springRoots[0]: /dubbo and /dubbo overlap"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.cfg)
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want it to contain %q", err, want)
				}
			}
		})
	}
}
