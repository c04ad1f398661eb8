package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine says what was measured on, and how much of it others used meanwhile:
// figures of a busy machine compare at best with one another.
type machine struct {
	began time.Time
	busy  time.Duration // of all cores since the boot
	own   time.Duration // of this process and its ended children
}

func newMachine() (machine, error) {
	m := machine{began: time.Now()}
	var err error
	if m.busy, err = busyTime(); err != nil {
		return m, err
	}
	m.own, err = ownTime()
	return m, err
}

// others is the share of all cores that other programs used since m. Call it when
// all children have ended.
func (m machine) others() (float64, error) {
	now, err := newMachine()
	if err != nil {
		return 0, err
	}
	whole := time.Since(m.began) * time.Duration(runtime.NumCPU())
	return max(0, float64(now.busy-m.busy-(now.own-m.own))/float64(whole)), nil
}

// busyTime is what /proc/stat counts as neither idle nor waiting for a disk.
func busyTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat: %q", line)
	}
	var sum int64
	for i, field := range fields[1:9] { // user nice system idle iowait irq softirq steal
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 {
			sum += n
		}
	}
	return time.Duration(sum) * (time.Second / 100), nil
}

func ownTime() (time.Duration, error) {
	var sum int64
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0, err
		}
		sum += u.Utime.Nano() + u.Stime.Nano()
	}
	return time.Duration(sum), nil
}

// describe is a line for the reader of the table.
func describe() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d cores, Linux %s, %s", runtime.NumCPU(), unix.ByteSliceToString(name.Release[:]), runtime.Version()), nil
}
