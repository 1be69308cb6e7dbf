package address_test

import (
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/internal/address"
)

func TestURLs(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"https://93.184.215.14/x?y=z": "", "http://93.184.215.14:65535": "",
		// It is not looked up here, and does not resolve.
		"https://nowhere.invalid": "",
		"":                        "must be an absolute", "/x": "must be an absolute", "ftp://93.184.215.14": "must be an absolute",
		"https://": "must be an absolute", "https://a\x00": "without NUL", "https://\xff": "must be UTF-8",
		"https://93.184.215.14/" + strings.Repeat("x", address.MaxURLLength): "at most 2048",
		"https://user@93.184.215.14":                                         "must not hold a user", "https://93.184.215.14/#x": "must not have a fragment",
		"https://93.184.215.14:0": "no port", "https://93.184.215.14:65536": "no port",
		"https://127.0.0.1": "must not lead to", "https://[::1]": "must not lead to", "https://[::ffff:10.0.0.1]": "must not lead to",
		"https://localhost": "must not lead to", "https://169.254.169.254": "must not lead to",
	} {
		err := address.Policy{}.CheckURL(t.Context(), url, false)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", url, err, want)
		}
	}
	if err := (address.Policy{AllowPrivate: true}).CheckURL(t.Context(), "http://127.0.0.1:1", true); err != nil {
		t.Errorf("where private addresses are allowed: %v", err)
	}
	if err := (address.Policy{}).CheckURL(t.Context(), "https://nowhere.invalid", true); err != nil {
		t.Errorf("a host that does not resolve now: %v", err)
	}
}
