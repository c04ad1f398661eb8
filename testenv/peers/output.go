package peers

import (
	"bytes"
	"sync"
)

// outputBytes is how much of a program's output is kept, its end. Up to twice as
// much is held, so that dropping the rest stays cheap.
const outputBytes = 256 << 10

// output keeps the end of what a program prints.
type output struct {
	mu   sync.Mutex
	text []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	if len(o.text) > 2*outputBytes {
		o.text = append(o.text[:0], o.text[len(o.text)-outputBytes:]...)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// hasLine reports whether the program printed exactly this line.
func (o *output) hasLine(line string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for got := range bytes.Lines(o.text) {
		if string(bytes.TrimRight(got, "\r\n")) == line {
			return true
		}
	}
	return false
}
