package subject

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Usage is what a subject has used since it started.
type Usage struct {
	CPU      time.Duration
	Switches int64 // voluntary and involuntary context switches of all threads
	RSS      int64 // bytes, now, of all processes
}

// Add returns the sum of what was used in two spans of time.
func (u Usage) Add(v Usage) Usage {
	return Usage{CPU: u.CPU + v.CPU, Switches: u.Switches + v.Switches, RSS: u.RSS + v.RSS}
}

// Sub returns what was used since before; RSS is the difference.
func (u Usage) Sub(before Usage) Usage {
	return Usage{CPU: u.CPU - before.CPU, Switches: u.Switches - before.Switches, RSS: u.RSS - before.RSS}
}

// usage sums over processes.
func usage(pids []int) (Usage, error) {
	var sum Usage
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		statm, err := os.ReadFile(filepath.Join(dir, "statm"))
		if err != nil {
			return sum, err
		}
		pages, err := number(string(statm), 1)
		if err != nil {
			return sum, fmt.Errorf("%s/statm: %w", dir, err)
		}
		sum.RSS += pages * int64(os.Getpagesize())
		// Of each thread: what the scheduler counts in ns. The sums for the whole
		// process are in ticks of 10 ms. No subject ends threads while it works.
		threads, err := filepath.Glob(filepath.Join(dir, "task", "*"))
		if err != nil {
			return sum, err
		}
		for _, thread := range threads {
			if err := sum.add(thread); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
				return sum, err
			}
		}
	}
	return sum, nil
}

// add adds one thread.
func (u *Usage) add(thread string) error {
	text, err := os.ReadFile(filepath.Join(thread, "schedstat"))
	if err != nil {
		return err
	}
	ns, err := number(string(text), 0)
	if err != nil {
		return fmt.Errorf("%s/schedstat: %w", thread, err)
	}
	u.CPU += time.Duration(ns)
	text, err = os.ReadFile(filepath.Join(thread, "status"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if !strings.HasSuffix(name, "voluntary_ctxt_switches") {
			continue
		}
		n, err := number(value, 0)
		if err != nil {
			return fmt.Errorf("%s/status: %s: %w", thread, name, err)
		}
		u.Switches += n
	}
	return nil
}

// number is the i-th word of text.
func number(text string, i int) (int64, error) {
	words := strings.Fields(text)
	if i >= len(words) {
		return 0, fmt.Errorf("%q has no word %d", text, i)
	}
	return strconv.ParseInt(words[i], 10, 64)
}
