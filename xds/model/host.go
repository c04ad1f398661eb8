package model

import (
	"fmt"
	"strings"
)

// Host is the name of a service as its registry knows it, folded to lower case:
// hosts are compared without case. The empty Host is no service.
type Host string

// maxHostBytes bounds a host name. DNS allows 253; Java interface names with
// generics and nested packages are longer, so registries get twice that.
const maxHostBytes = 512

// ParseHost checks and folds a host name. Allowed are letters, digits and
// "-._:$/" (Consul tags, Java inner classes, Dubbo paths); a name starts with a
// letter or a digit.
func ParseHost(s string) (Host, error) {
	if s == "" {
		return "", fmt.Errorf("host is empty")
	}
	if len(s) > maxHostBytes {
		return "", fmt.Errorf("host %q...: %d bytes, want at most %d", s[:32], len(s), maxHostBytes)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("-._:$/", rune(c))) {
			return "", fmt.Errorf("host %q: byte %d is %q, want a letter, a digit or one of -._:$/", s, i, c)
		}
	}
	return Host(strings.ToLower(s)), nil
}

// AtRegistry names the part of h that one registry holds: "<host>@<registry>".
func (h Host) AtRegistry(registry string) Host { return h + "@" + Host(strings.ToLower(registry)) }

// CutRegistry splits "<host>@<registry>"; ok is false when h names no registry.
func (h Host) CutRegistry() (host Host, registry string, ok bool) {
	name, reg, ok := strings.Cut(string(h), "@")
	return Host(name), reg, ok
}
