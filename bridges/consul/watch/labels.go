package watch

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// maxLabelBytes bounds the labels of an endpoint, keys and values with the
// separators that Labels.Bytes counts.
const maxLabelBytes = 1 << 10

// tagPrefix makes a label of a plain tag: "blue" is "tag.blue" = "true".
const tagPrefix = "tag."

// labelsOf gives an instance its labels, and how many of them found no room. In
// order of precedence: meta, tags of the form key=value, what the registry says
// beside them (app, dc, zone), plain tags. The names by which rules choose come
// first when room is short, the rest by name. Secrets become no labels.
func labelsOf(e *wire.Entry, datacenter string) (labels model.Labels, left int) {
	all := map[string]string{"app": e.Service.Service}
	if datacenter != "" {
		all["dc"] = datacenter
	}
	if zone := localityOf(e, datacenter).Zone; zone != "" {
		all["zone"] = zone
	}
	for _, tag := range e.Service.Tags {
		if k, v, ok := strings.Cut(tag, "="); ok && isLabelKey(k) && !bridges.IsSecret(k) {
			all[k] = v
		} else if isLabelKey(tagPrefix + tag) {
			all[tagPrefix+tag] = "true"
		}
	}
	for k, v := range e.Service.Meta {
		if isLabelKey(k) && !bridges.IsSecret(k) {
			all[k] = v
		}
	}
	keys := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
	room := maxLabelBytes
	for _, k := range keys {
		need := len(k) + len(all[k]) + 2
		if need > room {
			delete(all, k)
			left++
			continue
		}
		room -= need
	}
	return model.NewLabels(all), left
}

// chosenBy are the labels that rules and routing look at before others.
const chosenBy = " app version dc zone group unit tag mesh-origin mesh-owner "

func rank(key string) int {
	switch {
	case strings.Contains(chosenBy, " "+key+" "):
		return 0
	case !strings.HasPrefix(key, tagPrefix):
		return 1
	}
	return 2
}

// isLabelKey reports whether a rule can name the label: letters, digits and
// "-_./", starting and ending with a letter or a digit. Tags of other shapes
// (load balancers' settings, URLs) are no labels.
func isLabelKey(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || i == len(s)-1 || !strings.ContainsRune("-_./", rune(c))) {
			return false
		}
	}
	return s != ""
}
