// Command install puts the real peers that the tests start, and the tools that
// the build needs, into the cache of package cache.
//
//	go run ./testenv/peers/install            # every peer
//	go run ./testenv/peers/install consul     # one part
//	go run ./testenv/peers/install -print protoc
//
// It needs the ordinary package clients: Go, pip, Maven and, on Debian as root,
// apt-get. What is there already is left alone, so a second run takes no time;
// what was interrupted is begun anew, on the package clients' own caches. Runs
// at the same time wait for each other, part by part.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "install:", err)
		os.Exit(1)
	}
}

// run installs the parts that args name, or every peer.
func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("install", flag.ContinueOnError)
	list := flags.Bool("list", false, "list what can be installed, and what is")
	printDirs := flags.Bool("print", false, "print the folder of each part on standard output")
	if err := flags.Parse(args); err != nil {
		return err
	}
	repo, err := cache.Repository()
	if err != nil {
		return err
	}
	recipes, err := allRecipes(repo)
	if err != nil {
		return err
	}
	if *list {
		return printList(recipes)
	}
	wanted, err := choose(recipes, flags.Args())
	if err != nil {
		return err
	}

	start, out := time.Now(), newProgress(os.Stderr)
	needs, err := missingNeeds(wanted)
	if err != nil {
		return err
	}
	if len(flags.Args()) == 0 {
		needs = append(needs, programs()...)
	}
	if err := installDebian(ctx, needs, out); err != nil {
		return err
	}
	for _, r := range wanted {
		if err := install(ctx, r, out); err != nil {
			return fmt.Errorf("%s %s: %w", r.part.Name, r.part.Version, err)
		}
		if *printDirs {
			dir, err := r.part.Dir()
			if err != nil {
				return err
			}
			fmt.Println(dir)
		}
	}
	if took := time.Since(start); took > time.Second {
		out.line("installed everything in %v", took.Round(time.Second))
	}
	return nil
}

// missingNeeds returns what the parts that are still to be made need.
func missingNeeds(wanted []recipe) ([]need, error) {
	var needs []need
	for _, r := range wanted {
		installed, err := r.part.Installed()
		if err != nil {
			return nil, err
		}
		if !installed {
			needs = append(needs, r.need...)
		}
	}
	return needs, nil
}

// choose returns the recipes of the given names, or those of all peers.
func choose(all []recipe, names []string) ([]recipe, error) {
	if len(names) == 0 {
		return slices.DeleteFunc(slices.Clone(all), func(r recipe) bool { return !r.peer }), nil
	}
	var wanted []recipe
	var unknown []error
	for _, name := range names {
		i := slices.IndexFunc(all, func(r recipe) bool { return r.part.Name == name })
		if i < 0 {
			unknown = append(unknown, fmt.Errorf("no part is called %q: there are %s", name, known(all)))
			continue
		}
		wanted = append(wanted, all[i])
	}
	return wanted, errors.Join(unknown...)
}

func known(all []recipe) string {
	var names []string
	for _, r := range all {
		names = append(names, r.part.Name)
	}
	return strings.Join(names, ", ")
}

func printList(recipes []recipe) error {
	for _, r := range recipes {
		installed, err := r.part.Installed()
		if err != nil {
			return err
		}
		state := "missing"
		if installed {
			state = "installed"
		}
		fmt.Printf("%-14s %-20s %-10s %s\n", r.part.Name, r.part.Version, state, r.cost)
	}
	return nil
}
