package definition

import (
	"regexp"
	"slices"
	"strings"
)

// MaxConnectionName bounds the name of a connection, in characters. The database has the same bound.
const MaxConnectionName = 63

// ownHeaders are the headers that a call has by itself: those of the connection (RFC 9110, 7.6.1), those of the content, and
// those that have a secret.
var ownHeaders = []string{
	"authorization", "connection", "content-length", "content-type", "cookie", "expect", "host", "keep-alive", "proxy-authorization",
	"proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}

var (
	headerName     = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")
	connectionName = regexp.MustCompile(`^[a-z][a-z0-9]*([-_][a-z0-9]+)*$`)
)

// IsHeaderName reports whether a text can be the name of a header (RFC 9110, 5.1). It has at most 100 characters.
func IsHeaderName(text string) bool { return headerName.MatchString(text) }

// IsOwnHeader reports whether a call has a header by itself, so that neither a definition nor a connection gives it. Case does
// not count.
func IsOwnHeader(name string) bool { return slices.Contains(ownHeaders, strings.ToLower(name)) }

// IsConnectionName reports whether a text can be the name of a connection: up to [MaxConnectionName] lower-case letters and
// digits, with single dashes or underscores between them, of which a letter is the first.
func IsConnectionName(text string) bool {
	return len(text) <= MaxConnectionName && connectionName.MatchString(text)
}
