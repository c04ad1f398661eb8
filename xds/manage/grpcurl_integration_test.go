//go:build integration

package manage_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

func TestGrpcurlNeedsNoProtoFiles(t *testing.T) {
	grpcurl, err := cache.Grpcurl().Path("grpcurl")
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, nil)
	m.apply(t, subsets("cart"))
	addr := strings.TrimPrefix(m.url, "http://")
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"list"}, []string{"isthmus.mesh.v1.RuleService", "isthmus.mesh.v1.ProxyService"}},
		{[]string{"describe", "isthmus.mesh.v1.RuleService.Apply"}, []string{"isthmus.mesh.v1.ApplyRequest"}},
		{[]string{"isthmus.mesh.v1.StatusService/Get"}, []string{`"version": "v1.2.3"`, `"ruleRevision": "1"`}},
		{[]string{"isthmus.mesh.v1.RuleService/List"}, []string{`"name": "cart"`, `"author": "ada"`}},
	} {
		args := []string{"-plaintext"}
		if strings.Contains(tt.args[0], "/") {
			args = append(args, "-d", "{}")
		}
		out, err := exec.CommandContext(t.Context(), grpcurl, append(append(args, addr), tt.args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v\n%s", tt.args, err, out)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("%v: got\n%s\nwant %q", tt.args, out, want)
			}
		}
	}
	bad := exec.CommandContext(t.Context(), grpcurl, "-plaintext", "-d", `{"rule":"virtualservice/none"}`, addr, "isthmus.mesh.v1.RuleService/Get")
	if out, err := bad.CombinedOutput(); err == nil || !strings.Contains(string(out), "NotFound") {
		t.Errorf("a rule that is not there: %v\n%s", err, out)
	}
}
