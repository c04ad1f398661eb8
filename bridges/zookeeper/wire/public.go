package wire

import "strings"

// hidden stands for what Public leaves out.
const hidden = "..."

// Public is what may be shown of a provider's node name: protocol, address and
// interface. User, password and parameters, a token among them, are left out,
// also where the name cannot be parsed.
func Public(node string) string {
	text := lenient(node)
	protocol, rest, ok := strings.Cut(text, "://")
	if ok && isProtocol(protocol) {
		protocol += "://"
	} else {
		protocol, rest = "", text
	}
	authority, path, slash := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		if strings.ContainsAny(authority[:i], parameters) {
			return protocol + hidden // of a password, or of parameters
		}
		authority = authority[i+1:]
	}
	if slash {
		authority += "/" + path
	}
	if i := strings.IndexAny(authority, parameters); i >= 0 {
		authority = authority[:i]
	}
	if strings.Contains(authority, "@") || strings.ContainsAny(protocol, parameters) {
		return protocol + hidden // a password with a slash
	}
	return protocol + authority
}

// parameters are the characters with which parameters begin or go on.
const parameters = "?&=;#"

// maxEscapes is how often a name may have been escaped: Dubbo does it once, and
// what went through two tools has it twice.
const maxEscapes = 3

// lenient undoes escapes and leaves wrong ones as they are.
func lenient(s string) string {
	for range maxEscapes {
		if !strings.Contains(s, "%") {
			break
		}
		var b strings.Builder
		for i := 0; i < len(s); i++ {
			if s[i] == '%' && i+2 < len(s) {
				high, low := unhex(s[i+1]), unhex(s[i+2])
				if high >= 0 && low >= 0 {
					b.WriteByte(byte(high<<4 | low))
					i += 2
					continue
				}
			}
			b.WriteByte(s[i])
		}
		s = b.String()
	}
	return s
}

// unhex is the value of a hexadecimal digit, or -1.
func unhex(c byte) int { return strings.IndexByte("0123456789abcdef", lower(c)) }

func lower(c byte) byte {
	if c >= 'A' && c <= 'F' {
		c |= 0x20
	}
	return c
}
