package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/rotation"
)

// secretKeyVariable names the keys that seal stored secrets. There is no flag, since arguments are seen by all users of a
// machine.
const secretKeyVariable = "PAWL_SECRET_KEY"

// webhookSecretVariable has the deployment's secret, from which the secrets of callbacks are derived.
const webhookSecretVariable = "PAWL_WEBHOOK_SECRET"

// secretKeys returns the keys that seal stored secrets; none if the variable is not set.
func secretKeys() (fsm.SecretKeys, error) {
	text, err := secretVariable(secretKeyVariable)
	if err != nil {
		return fsm.SecretKeys{}, err
	}
	keys, err := fsm.ParseSecretKeys(text)
	if err != nil {
		return keys, fmt.Errorf("%s: %w", secretKeyVariable, err)
	}
	return keys, nil
}

// secretCommand is `pawl secret`.
type secretCommand struct {
	Key      secretKey      `cmd:"" help:"Print a new key for PAWL_SECRET_KEY, which seals the secrets that are stored."`
	Rotate   secretRotate   `cmd:"" help:"Seal all stored secrets with the first key of PAWL_SECRET_KEY."`
	Callback secretCallback `cmd:"" help:"Print the secret that signs a tenant's callbacks without a secret of their own."`
}

// secretKey prints a new key.
type secretKey struct{}

func (s *secretKey) Run(c *console) error {
	c.printf("%s\n", fsm.NewSecretKey())
	return nil
}

// secretRotate seals stored secrets anew.
type secretRotate struct {
	ownerFlags
}

func (s *secretRotate) Run(c *console) error {
	keys, err := secretKeys()
	if err != nil {
		return err
	}
	if !keys.Present() {
		return fmt.Errorf("%s must have the key to seal with, and behind it the keys that sealed before; 'pawl secret key' makes one", secretKeyVariable)
	}
	pool, err := openDatabase(c, s.DatabaseURL, db.Config{MaxConns: 1, StatementTimeout: time.Minute})
	if err != nil {
		return err
	}
	defer pool.Close()
	done, err := rotation.Reseal(c, pool, keys)
	c.printf("%d rows were sealed with the key %s, and %d were before\n", done.Sealed, keys.First(), done.Kept)
	if err != nil {
		return asOwner(err)
	}
	for _, row := range done.Unopened {
		c.complain("pawl: the %s %s of the tenant %q: %v\n", row.Table, row.Row, row.Tenant, row.Err)
	}
	var failed error
	if done.UnopenedCount > 0 {
		failed = fmt.Errorf("%d rows have secrets that cannot be opened, and did not change", done.UnopenedCount)
	}
	if done.Busy > 0 {
		failed = errors.Join(failed, fmt.Errorf("%d rows were in use each time: run the command again", done.Busy))
	}
	return failed
}

// secretCallback prints a tenant's callback secret. It needs no database.
type secretCallback struct {
	Tenant string `default:"default" env:"PAWL_TENANT" help:"The tenant."`
}

func (s *secretCallback) Run(c *console) error {
	if s.Tenant == fsm.Deployment {
		return errors.New("--tenant must be one tenant: each has a secret of its own")
	}
	text, err := secretVariable(webhookSecretVariable)
	if err != nil {
		return err
	}
	policy := fsm.WebhookPolicy{Secret: text}
	secret, err := policy.CallbackSecret(s.Tenant)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", webhookSecretVariable, err)
	case secret == "":
		return fmt.Errorf("%s must be the secret that the service has", webhookSecretVariable)
	}
	c.printf("%s\n", secret)
	return nil
}
