package connection

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/seal"
)

// Secrets get the secrets of connections.
type Secrets struct {
	// Keys open what is sealed.
	Keys fsm.SecretKeys
	// Variables are those that connections may name.
	Variables fsm.Variables
}

// Of returns how to authenticate at an endpoint, with the secret. The error says why the secret cannot be had, in words
// for the finding of the connection, and shows nothing of it.
func (s Secrets) Of(e queries.ConnectionEndpoint) (Auth, error) {
	var a Auth
	if err := json.Unmarshal(e.Auth, &a); err != nil {
		return Auth{}, errors.New("the way to authenticate cannot be read")
	}
	var err error
	switch {
	case a.Type == None:
		return a, nil
	case a.Variable != "":
		a.Secret, err = s.Variables.Read(e.TenantID, a.Variable)
	default:
		a.Secret, err = s.Keys.Open(e.Secret, seal.Connection(e.TenantID, e.Name))
	}
	if err != nil {
		return Auth{}, err
	}
	// A variable is not checked before, and a row may have been written by others.
	if err := checkSecret(a.Type, a.Secret); err != nil {
		return Auth{}, fmt.Errorf("the secret cannot be sent: it %w", err)
	}
	return a, nil
}
