// Package rules is what users write: Istio's VirtualService, DestinationRule,
// ServiceEntry and WorkloadEntry, read from YAML, checked, and held in sets that
// answer which rule concerns a host.
//
// Parse reports every mistake at once with its place. A field that the mesh does
// not enforce is refused by name and path; Fields is the table that decides, and
// docs/rules.md is made from it.
//
// Rules and Sets never change once made and may be shared between goroutines.
//
// Which rule wins, and why fields are refused rather than ignored: RATIONALE.md.
package rules

//go:generate go test -run TestDocs -count=1 . -update

import (
	"fmt"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"google.golang.org/protobuf/proto"
)

// RootNamespace is where rules live that concern clients of every namespace,
// unless a closer one exists.
const RootNamespace = "istio-system"

// DefaultNamespace is the namespace of a rule that names none.
const DefaultNamespace = "default"

// Kind is a kind of rule. The zero value is no kind.
type Kind uint8

// The kinds that the mesh reads.
const (
	VirtualService Kind = iota + 1
	DestinationRule
	ServiceEntry
	WorkloadEntry
)

var kindNames = [...]string{
	VirtualService: "VirtualService", DestinationRule: "DestinationRule",
	ServiceEntry: "ServiceEntry", WorkloadEntry: "WorkloadEntry",
}

// Kinds returns all kinds, in the order of the documentation.
func Kinds() []Kind { return []Kind{VirtualService, DestinationRule, ServiceEntry, WorkloadEntry} }

// String is the name as in YAML, "VirtualService"; empty for no kind.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return ""
}

// ParseKind reads a name without case.
func ParseKind(s string) (Kind, error) {
	for _, k := range Kinds() {
		if strings.EqualFold(k.String(), s) {
			return k, nil
		}
	}
	return 0, fmt.Errorf("kind %q is not enforced, want one of %s", s, strings.Join(kindNames[1:], ", "))
}

// newSpec returns an empty message of the kind.
func (k Kind) newSpec() proto.Message {
	switch k {
	case VirtualService:
		return &networking.VirtualService{}
	case DestinationRule:
		return &networking.DestinationRule{}
	case ServiceEntry:
		return &networking.ServiceEntry{}
	default:
		return &networking.WorkloadEntry{}
	}
}

// Key identifies a rule: "virtualservice/default/cart".
type Key string

// NewKey builds a key.
func NewKey(k Kind, namespace, name string) Key {
	return Key(strings.ToLower(k.String()) + "/" + namespace + "/" + name)
}

// ParseKey reads "kind/namespace/name" or "kind/name" (namespace default), the
// kind without case.
func ParseKey(s string) (Key, error) {
	parts := strings.Split(s, "/")
	if len(parts) == 2 {
		parts = []string{parts[0], DefaultNamespace, parts[1]}
	}
	if len(parts) != 3 {
		return "", fmt.Errorf("rule %q, want kind/namespace/name", s)
	}
	k, err := ParseKind(parts[0])
	if err != nil {
		return "", err
	}
	for i, what := range []string{"namespace", "name"} {
		if err := checkName(parts[i+1]); err != nil {
			return "", fmt.Errorf("rule %q: %s: %w", s, what, err)
		}
	}
	return NewKey(k, parts[1], parts[2]), nil
}

// Split returns the parts of a key made by NewKey or ParseKey.
func (k Key) Split() (kind Kind, namespace, name string) {
	parts := strings.SplitN(string(k), "/", 3)
	if len(parts) != 3 {
		return 0, "", ""
	}
	kind, _ = ParseKind(parts[0]) // zero for a foreign key, as documented on Kind
	return kind, parts[1], parts[2]
}

// Rule is one rule with what is known of its making. It never changes.
type Rule struct {
	Kind      Kind
	Namespace string
	Name      string
	Labels    map[string]string // metadata.labels; must not be modified
	Author    string            // who wrote it; empty for files
	Reason    string            // why; empty for files
	// Created decides between two rules for one host: the oldest wins. It is
	// metadata.creationTimestamp, or what the store recorded; the zero value
	// is oldest, and equal times are decided by Key.
	Created  time.Time
	Revision int64 // the store's; 0 for files
	// Spec is *VirtualService, *DestinationRule, *ServiceEntry or
	// *WorkloadEntry of istio.io/api/networking/v1alpha3. It must not be modified.
	Spec proto.Message
	YAML string // the document as the user wrote it
}

// Key identifies the rule.
func (r *Rule) Key() Key { return NewKey(r.Kind, r.Namespace, r.Name) }

// Same reports whether both say the same and are as old; either may be nil. Author,
// reason and revision do not count: they shape nothing.
func (r *Rule) Same(s *Rule) bool {
	if r == s {
		return true
	}
	return r != nil && s != nil && r.Kind == s.Kind && r.Namespace == s.Namespace && r.Name == s.Name &&
		r.Created.Equal(s.Created) && r.YAML == s.YAML && r.YAML != ""
}

// older reports whether r wins over s.
func (r *Rule) older(s *Rule) bool {
	if !r.Created.Equal(s.Created) {
		return r.Created.Before(s.Created)
	}
	return r.Key() < s.Key()
}

// VirtualService is the Spec, or nil when the rule is of another kind.
func (r *Rule) VirtualService() *networking.VirtualService {
	if r == nil {
		return nil
	}
	vs, _ := r.Spec.(*networking.VirtualService)
	return vs
}

// DestinationRule is the Spec, or nil when the rule is of another kind.
func (r *Rule) DestinationRule() *networking.DestinationRule {
	if r == nil {
		return nil
	}
	dr, _ := r.Spec.(*networking.DestinationRule)
	return dr
}

// maxNameBytes is the longest name that Kubernetes stores.
const maxNameBytes = 253

// checkName accepts what Kubernetes accepts as an object's name, so that rules
// can move there.
func checkName(s string) error {
	if s == "" {
		return fmt.Errorf("is missing")
	}
	if len(s) > maxNameBytes {
		return fmt.Errorf("%d bytes, want at most %d", len(s), maxNameBytes)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		edge := i == 0 || i == len(s)-1
		if !alnum && (edge || c != '-' && c != '.') {
			return fmt.Errorf("%q, want lower-case letters, digits, '-' and '.', with a letter or digit at both ends", s)
		}
	}
	return nil
}
