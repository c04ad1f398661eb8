package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Catalog is the answer of /v1/catalog/services: service name to the tags that
// its instances carry among them.
type Catalog map[string][]string

// DecodeCatalog reads a catalog. Anything but one JSON object is an error: null
// is not an empty registry.
func DecodeCatalog(body []byte) (Catalog, error) {
	var out Catalog
	if err := json.Unmarshal(body, &out); err != nil {
		return nil, malformed("catalog", err)
	}
	if out == nil {
		return nil, malformed("catalog", errors.New("is null"))
	}
	return out, nil
}

// Instances is the answer of /v1/health/service/<name>.
type Instances struct {
	Entries []Entry
	// Rejected are the places in the list that could not be read.
	Rejected []Rejected
}

// Rejected is one element of a list that could not be read, with the reason, and
// its Key if at least that could be read.
type Rejected struct {
	At     int
	Key    Key
	Reason string
}

// Key is what Consul knows an instance by.
type Key struct{ Node, ID string }

// Key returns the identity of e.
func (e *Entry) Key() Key { return Key{Node: e.Node.Node, ID: e.Service.ID} }

// Entry is one instance of a service with its node and its checks.
type Entry struct {
	Node    *Node
	Service *Service
	Checks  []Check
}

// Node is the machine on which the agent of an instance runs.
type Node struct {
	Node       string
	Address    string
	Datacenter string
	Locality   *Locality `json:",omitempty"`
}

// Service is an instance as its agent registered it.
type Service struct {
	Kind       string `json:",omitempty"`
	ID         string
	Service    string
	Tags       []string
	Meta       map[string]string
	Port       int
	Ports      []Port `json:",omitempty"`
	Address    string
	SocketPath string `json:",omitempty"`
	Weights    *Weights
	Locality   *Locality `json:",omitempty"`
}

// Port is one of several ports of an instance, in versions that have them.
type Port struct {
	Name    string
	Port    int
	Default bool
}

// Weights are an instance's shares while its checks pass and while they warn.
type Weights struct{ Passing, Warning int }

// Locality is where a node or an instance says it runs.
type Locality struct{ Region, Zone string }

// Check is one health check of an instance or of its node.
type Check struct{ CheckID, Status string }

// DecodeInstances reads a list of instances, each by itself: what cannot be read
// is in Rejected and its neighbours are kept. Anything but a JSON array is an
// error: null is not an empty list.
func DecodeInstances(body []byte) (Instances, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(body, &list); err != nil {
		return Instances{}, malformed("instances", err)
	}
	if list == nil {
		return Instances{}, malformed("instances", errors.New("are null"))
	}
	out := Instances{Entries: make([]Entry, 0, len(list))}
	for i, raw := range list {
		var e Entry
		err := json.Unmarshal(raw, &e)
		switch {
		case err != nil:
		case e.Node == nil:
			err = errors.New("has no node")
		case e.Service == nil:
			err = errors.New("has no service")
		}
		if err != nil {
			out.Rejected = append(out.Rejected, Rejected{At: i, Key: keyOf(raw), Reason: trim(err.Error())})
			continue
		}
		out.Entries = append(out.Entries, e)
	}
	return out, nil
}

// keyOf reads no more of an instance than its identity.
func keyOf(raw json.RawMessage) Key {
	var e struct {
		Node    struct{ Node string }
		Service struct{ ID string }
	}
	if json.Unmarshal(raw, &e) != nil {
		return Key{}
	}
	return Key{Node: e.Node.Node, ID: e.Service.ID}
}

func malformed(what string, err error) *Error {
	return &Error{Kind: Malformed, Text: fmt.Sprintf("%s: %s", what, trim(err.Error()))}
}

func trim(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxErrorText)], "") }
