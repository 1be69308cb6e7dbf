package seal_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/seal"
)

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

func parse(t *testing.T, keys ...string) seal.Keys {
	t.Helper()
	k, err := seal.Parse(strings.Join(keys, ","))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keyOf(id string, b byte) string {
	return id + ":" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(b), 32)))
}

func place() seal.Place {
	return seal.Subscription("t", uuid.MustParse("0195a2f0-11c8-7a4e-9b6d-3f5e7a9c1d20"))
}

// A secret is opened where it was sealed, by the key that sealed it, and nowhere else.
func TestOpenedInItsPlaceOnly(t *testing.T) {
	t.Parallel()
	k := parse(t, keyOf("a", '1'), keyOf("b", '2'))
	sealed := k.Seal(secret, place())
	if !strings.HasPrefix(sealed, "sealed:v1:a:") || strings.Contains(sealed, secret) || !seal.IsSealed(sealed) || !k.SealedByFirst(sealed) {
		t.Errorf("sealed to %s", sealed)
	}
	if k.Seal(secret, place()) == sealed {
		t.Error("it is sealed to the same text twice")
	}
	for name, keys := range map[string]seal.Keys{"the same": k, "in another order": parse(t, keyOf("b", '2'), keyOf("a", '1'))} {
		if got, err := keys.Open(sealed, place()); err != nil || got != secret {
			t.Errorf("%s: opened to %q: %v", name, got, err)
		}
	}
	refused := func(name string, k seal.Keys, text string, at seal.Place, want string) {
		t.Helper()
		got, err := k.Open(text, at)
		if err == nil || got != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: opened to %q: %v, want an error with %q", name, got, err, want)
		}
	}
	for name, change := range map[string]func(*seal.Place){
		"tenant": func(p *seal.Place) { p.Tenant = "u" },
		"table":  func(p *seal.Place) { p.Table = "callback" },
		"row":    func(p *seal.Place) { p.Row += "0" },
		"column": func(p *seal.Place) { p.Column = "previous_secret" },
		"parts":  func(p *seal.Place) { p.Tenant, p.Table = `t","subscription`, "" },
	} {
		at := place()
		change(&at)
		refused("another "+name, k, sealed, at, "another row")
	}
	body := strings.TrimPrefix(sealed, "sealed:v1:a:")
	for n := range len(body) {
		refused("cut", k, "sealed:v1:a:"+body[:n], place(), "damaged")
	}
	flipped := []byte(body)
	flipped[20] ^= 1
	refused("flipped", k, "sealed:v1:a:"+string(flipped), place(), "damaged")
	refused("other id", k, strings.Replace(sealed, ":a:", ":b:", 1), place(), "id b")
	refused("unknown id", k, strings.Replace(sealed, ":a:", ":c:", 1), place(), "key c, which is not in PAWL_SECRET_KEY")
	refused("no keys", seal.Keys{}, sealed, place(), "key a, which is not in PAWL_SECRET_KEY")
	refused("other key", parse(t, keyOf("a", '3')), sealed, place(), "damaged")
	for _, text := range []string{"sealed:", "sealed:v1:", "sealed:v1:a", "sealed:v2:a:" + body} {
		refused(text, k, text, place(), "unknown form")
	}
}

func TestWithoutKeys(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", " ", "\n"} {
		k, err := seal.Parse(text)
		if err != nil || k.Present() || k.Seal(secret, place()) != secret {
			t.Errorf("%q: %v", text, err)
		}
	}
	if got, err := parse(t, keyOf("a", '1')).Open(secret, place()); err != nil || got != secret {
		t.Errorf("a secret of before: %q, %v", got, err)
	}
	if got := parse(t, keyOf("a", '1')).Seal("", place()); got != "" {
		t.Errorf("nothing is sealed to %s", got)
	}
}

// What is wrong with a configuration is said, by the number of the key and never with the key.
func TestMalformedKeys(t *testing.T) {
	t.Parallel()
	raw := strings.Repeat("hunter2!", 4)
	encoded := base64.StdEncoding.EncodeToString([]byte(raw))
	fine := keyOf("a", '1')
	for text, want := range map[string]string{
		encoded:                                "key 1 must have the form id:base64",
		fine + ",":                             "key 2 must have the form id:base64",
		fine + "," + encoded:                   "key 2 must have the form id:base64",
		":" + encoded:                          "key 1 must have the form id:base64",
		"two words:" + encoded:                 "key 1 must have the form id:base64",
		strings.Repeat("x", 33) + ":" + "":     "key 1 must have the form id:base64",
		"a:" + raw:                             "key 1 must be padded base64",
		"a:" + strings.TrimRight(encoded, "="): "key 1 must be padded base64",
		"a:" + encoded[:20] + "\n" + encoded[20:]: "key 1 must be padded base64",
		"a:": "key 1 must have 32 bytes, and has 0",
		"a:" + base64.StdEncoding.EncodeToString([]byte(raw[:31])): "key 1 must have 32 bytes, and has 31",
		fine + "," + keyOf("a", '2'):                               "key 2 has the id of an earlier key",
	} {
		_, err := seal.Parse(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
			continue
		}
		for _, part := range []string{raw, encoded, encoded[:20], encoded[20:30]} {
			if strings.Contains(err.Error(), part) {
				t.Errorf("the error shows the key: %v", err)
			}
		}
	}
	if k := parse(t, " "+fine+" ,\n"+keyOf("b", '2')); k.First() != "a" {
		t.Errorf("the first key is %s", k.First())
	}
}

func TestNewKey(t *testing.T) {
	t.Parallel()
	one, two := seal.NewKey(), seal.NewKey()
	k := parse(t, one, two)
	if sealed := k.Seal(secret, place()); !strings.HasPrefix(one, strings.Split(sealed, ":")[2]+":") {
		t.Errorf("the first key does not seal: %s", sealed)
	}
}

func TestDigest(t *testing.T) {
	t.Parallel()
	if seal.Digest("") != "" || seal.Digest("a") == seal.Digest("b") || strings.Contains(seal.Digest(secret), secret) {
		t.Error(fmt.Sprint("digests are ", seal.Digest(""), seal.Digest("a")))
	}
}
