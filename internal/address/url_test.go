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
		"https://bücher.example\u0001": "must be an absolute", "https://a b.example": "must be an absolute", " https://x.example": "with a space",
		"https://x.example/ ": "with a space", "https://x.example/a%2": "two hexadecimal", "https://x.example/?a=100%": "two hexadecimal",
		"https://xn--\u00e4.example": "IDNA", "https://a*b.example": "letters, digits", "https://x.example/" + strings.Repeat("ä", 400): "it has 2418",
		"https://[fe80::1%25eth0]": "must not lead to", "https://ｌｏｃａｌｈｏｓｔ": "must not lead to", "https://１２７.0.0.1": "must not lead to",
		"https://93.184.215.14:0": "no port", "https://93.184.215.14:65536": "no port",
		"https://127.0.0.1": "must not lead to", "https://[::1]": "must not lead to", "https://[::ffff:10.0.0.1]": "must not lead to",
		"https://localhost": "must not lead to", "https://169.254.169.254": "must not lead to",
	} {
		_, err := address.Policy{}.CheckURL(t.Context(), url, false)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", url, err, want)
		}
	}
	if _, err := (address.Policy{AllowPrivate: true}).CheckURL(t.Context(), "http://127.0.0.1:1", true); err != nil {
		t.Errorf("where private addresses are allowed: %v", err)
	}
	if _, err := (address.Policy{}).CheckURL(t.Context(), "https://nowhere.invalid", true); err != nil {
		t.Errorf("a host that does not resolve now: %v", err)
	}
}

// What a client is shown is what is sent: nothing is left that a request line must not have, and
// nothing that was encoded is encoded again.
func TestNormalURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://example.com":                               "https://example.com",
		"HTTPS://Example.COM:443/":                          "https://example.com:443/",
		"https://example.com:/x":                            "https://example.com/x",
		"https://example.com/?#":                            "https://example.com/",
		"http://my_service:8080/hook":                       "http://my_service:8080/hook",
		"https://Bücher.example/x":                          "https://xn--bcher-kva.example/x",
		"https://日本語。jp/":                                   "https://xn--wgv71a119e.jp/",
		"https://B%C3%BCcher.example/":                      "https://xn--bcher-kva.example/",
		"https://example.com/a b/ü?q=ö x&y=[1]":             "https://example.com/a%20b/%C3%BC?q=%C3%B6%20x&y=%5B1%5D",
		"https://example.com/a%2Fb c":                       "https://example.com/a%2Fb%20c",
		"https://example.com/%7euser/%e4":                   "https://example.com/%7euser/%e4",
		"https://example.com/a+b;v=1,2/(x)!~*'$&@:?a=b/c?d": "https://example.com/a+b;v=1,2/(x)!~*'$&@:?a=b/c?d",
		"https://example.com/\"<>\\^`{|}":                   "https://example.com/%22%3C%3E%5C%5E%60%7B%7C%7D",
		"https://example.com//a/../b":                       "https://example.com//a/../b",
		"https://example.com?x":                             "https://example.com?x",
		"http://[2001:DB8::1]:80/":                          "http://[2001:DB8::1]:80/",
		"http://127.0.0.1:1/":                               "http://127.0.0.1:1/",
	} {
		got, err := address.NormalURL(raw)
		if err != nil || got != want {
			t.Errorf("%s is %s, want %s: %v", raw, got, want, err)
		}
		if again, err := address.NormalURL(got); err != nil || again != got {
			t.Errorf("%s becomes %s: %v", got, again, err)
		}
	}
}
