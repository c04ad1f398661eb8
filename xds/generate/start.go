package generate

// Start moves the generator on to the catalog's present view and the newest
// rules, before the first node joins: nodes must not be configured from what was
// known when New ran. Once nodes are connected it does nothing; Run does it then.
func (g *Generator) Start() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.lives) > 0 {
		return
	}
	g.world.view = g.catalog.View()
	if g.pending != nil {
		g.world.set, g.world.labels = *g.pending, g.pending.SourceLabels()
		g.pending = nil
	}
	clear(g.outs) // made from the world before
}
