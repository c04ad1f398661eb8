package rules

// SourceLabels are the labels that any rule matches callers by: the values it
// names, by key. What else a caller is labelled with makes no difference.
func (s Set) SourceLabels() map[string]map[string]struct{} {
	pairs := map[string]map[string]struct{}{}
	for _, r := range s.All() {
		for _, m := range sourceMatches(r.VirtualService()) {
			for key, value := range m.GetSourceLabels() {
				if pairs[key] == nil {
					pairs[key] = map[string]struct{}{}
				}
				pairs[key][value] = struct{}{}
			}
		}
	}
	return pairs
}
