package peers

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

// readyLine is what each of our Java applications prints once it serves.
const readyLine = "READY"

// JavaApp says which program of testenv/java to start, and how.
type JavaApp struct {
	Module     string   // folder of testenv/java, as "spring"
	Main       string   // class with the main method
	Options    []string // options of the virtual machine, as "-Xmx400m"
	Properties []string // "key=value" for -D; of two with one key the later wins
	Args       []string // arguments of the program
}

// StartJava starts an application that prints the line READY once it serves.
// Most tests want StartDubboProvider, StartDubboConsumer or StartSpring.
func StartJava(t testing.TB, app JavaApp) *Process {
	t.Helper()
	p := newJava(t, app)
	p.launch()
	return p
}

// newJava returns the process of an application, not yet started.
func newJava(t testing.TB, app JavaApp) *Process {
	t.Helper()
	java, err := exec.LookPath("java")
	if err != nil {
		t.Fatalf("start %s: %v; it needs JDK 17, on Debian: apt-get install openjdk-17-jdk-headless", app.Main, err)
	}
	part, err := cache.Java()
	if err != nil {
		t.Fatalf("start %s: %v", app.Main, err)
	}
	dir, err := part.Path(app.Module)
	if err != nil {
		t.Fatalf("start %s: %v", app.Main, err)
	}
	// Small and quick to start: tests run several at once.
	args := []string{
		"-Xmx200m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
		"-Duser.home=" + t.TempDir(),
	}
	args = append(args, app.Options...)
	for _, property := range app.Properties {
		args = append(args, "-D"+property)
	}
	args = append(args, "-cp", filepath.Join(dir, "classes")+":"+filepath.Join(dir, "lib")+"/*", app.Main)
	return &Process{
		t:      t,
		name:   app.Main,
		path:   java,
		args:   append(args, app.Args...),
		within: time.Minute,
		ready: func(_ context.Context, out *output) error {
			if !out.hasLine(readyLine) {
				return errors.New("it has not printed " + readyLine)
			}
			return nil
		},
	}
}
