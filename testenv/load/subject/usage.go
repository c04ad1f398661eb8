package subject

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a subject has used since it started.
type Usage struct {
	CPU      time.Duration
	Switches int64 // voluntary and involuntary context switches of all threads
	RSS      int64 // bytes, now, of all processes
}

// Sub returns what was used since before; RSS is the difference.
func (u Usage) Sub(before Usage) Usage {
	return Usage{CPU: u.CPU - before.CPU, Switches: u.Switches - before.Switches, RSS: u.RSS - before.RSS}
}

// clockTick is the unit of times in /proc, which Linux fixes for user space.
const clockTick = 10 * time.Millisecond

// usage sums over processes. The kernel scales user and system time so that their
// sum is the exact run time, to the tick.
func usage(pids []int) (Usage, error) {
	var sum Usage
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			return sum, err
		}
		// The command in parentheses may hold anything.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 22 {
			return sum, fmt.Errorf("%s/stat: %d fields", dir, len(fields))
		}
		var numbers [3]int64
		for i, at := range []int{11, 12, 21} { // utime, stime, rss
			numbers[i], err = strconv.ParseInt(string(fields[at]), 10, 64)
			if err != nil {
				return sum, fmt.Errorf("%s/stat: %w", dir, err)
			}
		}
		sum.CPU += time.Duration(numbers[0]+numbers[1]) * clockTick
		sum.RSS += numbers[2] * int64(os.Getpagesize())
		switches, err := switches(dir)
		if err != nil {
			return sum, err
		}
		sum.Switches += switches
	}
	return sum, nil
}

func switches(dir string) (int64, error) {
	files, err := filepath.Glob(filepath.Join(dir, "task", "*", "status"))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has just ended
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			if !strings.HasSuffix(name, "voluntary_ctxt_switches") {
				continue
			}
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %s: %w", file, name, err)
			}
			sum += n
		}
	}
	return sum, nil
}
