package process

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

// memoryShare of the container's limit is given to the Go runtime; the rest is
// for stacks of the kernel, the binary's pages and what cgroups count besides.
const memoryShare = 0.9

// Limits are what ApplyLimits set. Zero means left alone.
type Limits struct {
	MemoryBytes int64 // the runtime's soft memory limit
	Procs       int   // GOMAXPROCS
}

// ApplyLimits sets the runtime's memory limit to 90 % of the tightest cgroup
// memory limit (v1 or v2) above this process, and GOMAXPROCS to 1 where the CPU
// quota is one core or less. GOMEMLIMIT and GOMAXPROCS in the environment win.
// root is the file system's root.
func ApplyLimits(root fs.FS, lookupEnv func(string) (string, bool)) (Limits, error) {
	var set Limits
	memory, cores, err := cgroupLimits(root)
	if _, given := lookupEnv("GOMEMLIMIT"); !given && memory > 0 {
		set.MemoryBytes = int64(float64(memory) * memoryShare)
		debug.SetMemoryLimit(set.MemoryBytes)
	}
	if _, given := lookupEnv("GOMAXPROCS"); !given && cores > 0 && cores <= 1 {
		set.Procs = 1
		runtime.GOMAXPROCS(1)
	}
	return set, err
}

// cgroupLimits returns the tightest limits; 0 means none.
func cgroupLimits(root fs.FS) (memoryBytes int64, cores float64, err error) {
	groups, err := readLines(root, "proc/self/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil // not Linux, or no /proc
	}
	if err != nil {
		return 0, 0, fmt.Errorf("cgroup limits: %w", err)
	}
	mounts, err := cgroupMounts(root)
	if err != nil {
		return 0, 0, fmt.Errorf("cgroup limits: %w", err)
	}
	cores = math.Inf(1)
	memoryBytes = math.MaxInt64
	for _, line := range groups {
		// "4:memory:/a/b" or "0::/a/b"
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			m, mounted := mounts[controller]
			if !mounted {
				continue
			}
			for dir := range ancestors(m, parts[2]) {
				switch controller {
				case "":
					memoryBytes = min(memoryBytes, readBytes(root, dir+"/memory.max"))
					cores = min(cores, readQuota2(root, dir+"/cpu.max"))
				case "memory":
					memoryBytes = min(memoryBytes, readBytes(root, dir+"/memory.limit_in_bytes"))
				case "cpu":
					cores = min(cores, readQuota1(root, dir))
				}
			}
		}
	}
	// v1 says "no limit" with the largest multiple of the page size.
	if memoryBytes >= math.MaxInt64-(1<<20) {
		memoryBytes = 0
	}
	if math.IsInf(cores, 1) {
		cores = 0
	}
	return memoryBytes, cores, nil
}

// cgroupMount is where one hierarchy is mounted and which folder of it is there.
type cgroupMount struct{ point, root string }

// cgroupMounts finds mounts by controller; "" is the unified hierarchy.
func cgroupMounts(root fs.FS) (map[string]cgroupMount, error) {
	lines, err := readLines(root, "proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	mounts := map[string]cgroupMount{}
	for _, line := range lines {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		m := cgroupMount{point: l[4], root: l[3]}
		switch r[0] {
		case "cgroup2":
			mounts[""] = m
		case "cgroup":
			for option := range strings.SplitSeq(r[2], ",") {
				if option == "memory" || option == "cpu" {
					mounts[option] = m
				}
			}
		}
	}
	return mounts, nil
}

// ancestors yields the folders from group up to the mount, as paths in an fs.FS.
func ancestors(m cgroupMount, group string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		below := strings.TrimPrefix(group, strings.TrimSuffix(m.root, "/"))
		for dir := path.Join("/", below); ; dir = path.Dir(dir) {
			if !yield(strings.TrimPrefix(path.Join(m.point, dir), "/")) || dir == "/" {
				return
			}
		}
	}
}

func readLines(root fs.FS, name string) ([]string, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var lines []string
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		lines = append(lines, scan.Text())
	}
	return lines, scan.Err()
}

func readFirst(root fs.FS, name string) string {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return "" // this level does not limit
	}
	return strings.TrimSpace(string(data))
}

func readBytes(root fs.FS, name string) int64 {
	n, err := strconv.ParseInt(readFirst(root, name), 10, 64)
	if err != nil || n <= 0 {
		return math.MaxInt64 // absent, "max" or nonsense: no limit here
	}
	return n
}

func readQuota2(root fs.FS, name string) float64 {
	fields := strings.Fields(readFirst(root, name))
	if len(fields) != 2 {
		return math.Inf(1)
	}
	return quota(fields[0], fields[1])
}

func readQuota1(root fs.FS, dir string) float64 {
	return quota(readFirst(root, dir+"/cpu.cfs_quota_us"), readFirst(root, dir+"/cpu.cfs_period_us"))
}

func quota(quotaText, periodText string) float64 {
	q, err1 := strconv.ParseFloat(quotaText, 64)
	p, err2 := strconv.ParseFloat(periodText, 64)
	if err1 != nil || err2 != nil || q <= 0 || p <= 0 {
		return math.Inf(1)
	}
	return q / p
}
