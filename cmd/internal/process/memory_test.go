package process

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadOnlyMappings(t *testing.T) {
	maps := []string{
		"00400000-00a5d000 r-xp 00000000 fe:00 1234                               /usr/bin/sidecar",
		"00a5d000-01000000 r--p 0065d000 fe:00 1234                               /usr/bin/sidecar",
		"01000000-01100000 rw-p 00c00000 fe:00 1234                               /usr/bin/sidecar",
		"02000000-02100000 r--s 00000000 fe:00 1234                               /usr/bin/sidecar",
		"7f0000000000-7f0000001000 r--p 00000000 fe:00 99                         /usr/lib/other.so",
		"7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]",
		"zz-00a5d000 r-xp 00000000 fe:00 1234                                     /usr/bin/sidecar",
		"",
	}
	want := []mapping{{0x400000, 0xa5d000}, {0xa5d000, 0x1000000}}
	if d := cmp.Diff(want, readOnly(maps, "/usr/bin/sidecar"), cmp.AllowUnexported(mapping{})); d != "" {
		t.Errorf("mappings (-want +got):\n%s", d)
	}
}

// TestGiveBack drops this very process's pages; that it goes on is the test.
func TestGiveBack(t *testing.T) {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := GiveBack(os.DirFS("/"), path); err != nil {
		t.Error(err)
	}
}
