package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Class is who registered a Curator instance.
type Class string

// The classes that are known, as they stand in payload.@class.
const (
	ClassSpring Class = "org.springframework.cloud.zookeeper.discovery.ZookeeperInstance"
	ClassDubbo  Class = "org.apache.dubbo.registry.zookeeper.ZookeeperInstance"
)

// Instance is a Curator ServiceInstance.
type Instance struct {
	Name, ID string
	Address  netip.Addr
	// Port and SSLPort are where it listens in the clear and with TLS; 0 means
	// not at all. One of them is set.
	Port, SSLPort uint16
	Class         Class             // "" when the payload names none
	Metadata      map[string]string // of the payload; nil when it has none
	Registered    time.Time         // by the application's clock; zero when unknown
	Enabled       bool              // false only when the entry says so
}

// maxInstanceBytes bounds an entry; it is what ZooKeeper accepts by default.
const maxInstanceBytes = 1 << 20

type instanceJSON struct {
	Name         string          `json:"name"`
	ID           string          `json:"id"`
	Address      string          `json:"address"`
	Port         *int64          `json:"port"`
	SSLPort      *int64          `json:"sslPort"`
	Payload      json.RawMessage `json:"payload"`
	Registration int64           `json:"registrationTimeUTC"`
	ServiceType  string          `json:"serviceType"`
	URISpec      json.RawMessage `json:"uriSpec"`
	Enabled      *bool           `json:"enabled,omitempty"`
}

type payloadJSON struct {
	Class    string            `json:"@class,omitempty"`
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Metadata map[string]scalar `json:"metadata"`
}

// scalar is a metadata value: a string, or what a careless client wrote in place
// of one.
type scalar string

// UnmarshalJSON implements json.Unmarshaler.
func (s *scalar) UnmarshalJSON(text []byte) error {
	switch text[0] {
	case '"':
		var v string
		err := json.Unmarshal(text, &v)
		*s = scalar(v)
		return err
	case '{', '[':
		return fmt.Errorf("metadata value %s, want a string", shown(string(text)))
	case 'n':
		*s = ""
	default:
		*s = scalar(text)
	}
	return nil
}

// ErrNotInstance says that a node is no instance at all: it has no data, as a
// folder has none.
var ErrNotInstance = errors.New("no data: not an instance")

// ParseInstance reads the data of a child of /services/<name>. Whose entry it is
// (Class) is told even with an error, when the JSON could be read that far: an
// entry that is left alone anyway need not be complained about.
func ParseInstance(data []byte) (Instance, error) {
	if len(data) > maxInstanceBytes {
		return Instance{}, fmt.Errorf("instance of %d bytes, want at most %d", len(data), maxInstanceBytes)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return Instance{}, ErrNotInstance
	}
	var raw instanceJSON
	if err := json.Unmarshal(data, &raw); err != nil {
		return Instance{}, fmt.Errorf("instance %s is not a Curator instance: %w", shown(string(data)), plainJSON(err))
	}
	i := Instance{Name: raw.Name, ID: raw.ID, Registered: fromMilli(raw.Registration), Enabled: raw.Enabled == nil || *raw.Enabled}
	errs := []error{checkText("name", raw.Name), checkText("id", raw.ID), i.setPayload(raw.Payload)}
	var err error
	i.Address, err = parseAddr(raw.Address)
	errs = append(errs, err, setPort(&i.Port, "port", raw.Port), setPort(&i.SSLPort, "sslPort", raw.SSLPort))
	if err := errors.Join(errs...); err != nil {
		return i, err
	}
	if i.Port == 0 && i.SSLPort == 0 {
		return i, errors.New("neither port nor sslPort is set")
	}
	return i, nil
}

// setPort takes a port that may be null; 0 is refused, for nobody listens there.
func setPort(into *uint16, what string, n *int64) error {
	if n == nil {
		return nil
	}
	port, err := checkPort(*n)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	*into = port
	return nil
}

// plainJSON drops the Go type names from an error of encoding/json.
func plainJSON(err error) error {
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s is a JSON %s", shown(wrong.Field), wrong.Value)
	}
	return err
}

func (i *Instance) setPayload(data json.RawMessage) error {
	if len(data) == 0 || bytes.Equal(data, []byte("null")) {
		return nil
	}
	var p payloadJSON
	if err := json.Unmarshal(data, &p); err != nil {
		return fmt.Errorf("payload %s: %w", shown(string(data)), plainJSON(err))
	}
	i.Class = Class(p.Class)
	if p.Metadata != nil {
		i.Metadata = make(map[string]string, len(p.Metadata))
	}
	var errs []error
	for key, value := range p.Metadata {
		if key == "" || key == "@class" { // Jackson's type marker, no metadata
			continue
		}
		errs = append(errs, checkText("metadata key", key), checkText("metadata "+shown(key), string(value)))
		i.Metadata[key] = string(value)
	}
	return errors.Join(errs...)
}

// Encode returns data that ParseInstance reads as i, in the shape that Curator
// writes and Spring reads.
func (i Instance) Encode() ([]byte, error) {
	raw := instanceJSON{
		Name: i.Name, ID: i.ID, Address: i.Address.String(), ServiceType: "DYNAMIC", URISpec: json.RawMessage("null"),
		Payload: json.RawMessage("null"),
	}
	if !i.Registered.IsZero() {
		raw.Registration = i.Registered.UnixMilli()
	}
	if !i.Enabled {
		raw.Enabled = &i.Enabled
	}
	for _, p := range []struct {
		number uint16
		into   **int64
	}{{i.Port, &raw.Port}, {i.SSLPort, &raw.SSLPort}} {
		if p.number != 0 {
			n := int64(p.number)
			*p.into = &n
		}
	}
	if i.Class != "" || i.Metadata != nil {
		payload := payloadJSON{Class: string(i.Class), ID: i.ID, Name: i.Name}
		if i.Metadata != nil {
			payload.Metadata = make(map[string]scalar, len(i.Metadata))
		}
		for key, value := range i.Metadata {
			payload.Metadata[key] = scalar(value)
		}
		var err error
		if raw.Payload, err = json.Marshal(payload); err != nil {
			return nil, err
		}
	}
	return json.Marshal(raw)
}

// statusKey is where Spring keeps an instance's status.
const statusKey = "instance_status"

// Status is the status that Spring keeps in the metadata, upper case; "UP" when
// there is none.
func (i Instance) Status() string {
	if s := i.Metadata[statusKey]; s != "" {
		return strings.ToUpper(s)
	}
	return "UP"
}

// Weight is the weight in the metadata, as Spring Cloud LoadBalancer reads it: 1
// is its default. stated is false when there is none.
func (i Instance) Weight() (weight uint32, stated bool, err error) {
	s := i.Metadata["weight"]
	if s == "" {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxWeight {
		return 0, true, fmt.Errorf("weight %s, want 0 to %d", shown(s), maxWeight)
	}
	return uint32(n), true, nil
}
