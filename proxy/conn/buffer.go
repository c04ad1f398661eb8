package conn

import "sync"

// Sizes of pooled buffers. A request or response of 1 KiB fits the small one; the
// large one holds the largest head and is worth its system calls on long bodies.
const (
	SmallBuffer = 4 << 10
	LargeBuffer = 64 << 10
)

var (
	small = sync.Pool{New: func() any { return new([SmallBuffer]byte) }}
	large = sync.Pool{New: func() any { return new([LargeBuffer]byte) }}
)

// Buffer is a stretch of bytes read and not yet used, in pooled memory. The zero
// Buffer is empty and holds none.
type Buffer struct {
	mem        []byte // nil, or all of a pooled array
	start, end int
}

// Bytes are the bytes not yet used. They are valid until the next Room or Release.
func (b *Buffer) Bytes() []byte { return b.mem[b.start:b.end] }

// Len is how many bytes are not yet used.
func (b *Buffer) Len() int { return b.end - b.start }

// Skip marks the first n bytes as used.
func (b *Buffer) Skip(n int) { b.start += n }

// Truncate forgets all but the first n unused bytes.
func (b *Buffer) Truncate(n int) { b.end = b.start + n }

// Filled marks n bytes of Room as read.
func (b *Buffer) Filled(n int) { b.end += n }

// Room returns space to read into, after the unused bytes: at least one byte,
// unless these fill a large buffer. It moves them, and takes memory, as needed.
func (b *Buffer) Room() []byte {
	switch {
	case b.mem == nil:
		b.mem = small.Get().(*[SmallBuffer]byte)[:]
		b.start, b.end = 0, 0
	case b.start == b.end:
		b.start, b.end = 0, 0
	case b.end < len(b.mem):
	case b.start > 0:
		b.end = copy(b.mem, b.mem[b.start:b.end])
		b.start = 0
	default:
		b.Grow()
	}
	return b.mem[b.end:]
}

// Grow moves to a large buffer.
func (b *Buffer) Grow() {
	if len(b.mem) == LargeBuffer {
		return
	}
	mem := large.Get().(*[LargeBuffer]byte)[:]
	end := copy(mem, b.Bytes())
	b.Release()
	b.mem, b.start, b.end = mem, 0, end
}

// Release drops all bytes and gives the memory back.
func (b *Buffer) Release() {
	switch len(b.mem) {
	case SmallBuffer:
		small.Put((*[SmallBuffer]byte)(b.mem))
	case LargeBuffer:
		large.Put((*[LargeBuffer]byte)(b.mem))
	}
	*b = Buffer{}
}
