package invoke

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/connection"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

// A connectionKey names a connection.
type connectionKey struct{ tenant, name string }

// lane is the lane of a connection's calls.
func (k connectionKey) lane() string { return k.tenant + " " + k.name }

// An endpoint is what is needed to call the service of a connection.
type endpoint struct {
	base string
	// authName and authValue are the header that authenticates; empty for none.
	authName, authValue string
	headers             json.RawMessage
	// timeout is the longest that an attempt may take; 0 for what the task says.
	timeout time.Duration
	client  *dispatch.Client
}

// A pool has the HTTP connections to one service.
type pool struct {
	client *dispatch.Client
	// settings tells a client from one with other settings.
	settings [sha256.Size]byte
	used     time.Time
}

// connections are the connections that this process calls by. One goroutine uses them.
type connections struct {
	config Config
	pools  map[connectionKey]*pool
	// reported are the findings that were logged.
	reported map[connectionKey]string
	closed   time.Time
}

func newConnections(config Config) *connections {
	return &connections{config: config, pools: map[connectionKey]*pool{}, reported: map[connectionKey]string{}}
}

// open makes the endpoint of a row. Its error is a finding: it says why the service cannot be called, and shows no secret.
func (c *connections) open(row queries.ConnectionEndpoint) (*endpoint, error) {
	key := connectionKey{row.TenantID, row.Name}
	// A timeout has no days: it is at most ten minutes.
	conn := &endpoint{base: row.BaseUrl, headers: row.Headers, timeout: time.Duration(row.Timeout.Microseconds) * time.Microsecond}
	auth, err := connection.Secrets{Keys: c.config.Keys, Variables: c.config.Variables}.Of(row)
	if err != nil {
		return nil, err
	}
	switch auth.Type {
	case connection.Bearer:
		conn.authName, conn.authValue = "Authorization", "Bearer "+auth.Secret
	case connection.Basic:
		conn.authName, conn.authValue = "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(auth.User+":"+auth.Secret))
	case connection.Header:
		conn.authName, conn.authValue = auth.Name, auth.Secret
	}
	if conn.authName != "" && !httpguts.ValidHeaderFieldName(conn.authName) { // A row may have been written by others.
		return nil, errors.New("its auth names no header")
	}
	conn.client, err = c.client(key, row)
	return conn, err
}

// client returns the client of a connection, which is another one if its certificates or its concurrency have changed.
func (c *connections) client(key connectionKey, row queries.ConnectionEndpoint) (*dispatch.Client, error) {
	settings := sha256.Sum256(fmt.Appendf(nil, "%d %s", row.Concurrency, row.TlsCa))
	if p := c.pools[key]; p != nil && p.settings == settings {
		p.used = time.Now()
		return p.client, nil
	}
	config := dispatch.Config{
		Guard: c.config.Policy.Guard(), Concurrency: int(row.Concurrency), PerLane: int(row.Concurrency), MaxBody: maxBody, BodyTimeout: maxTimeout,
	}
	if row.TlsCa != "" {
		config.Roots = x509.NewCertPool()
		if !config.Roots.AppendCertsFromPEM([]byte(row.TlsCa)) {
			return nil, errors.New("its tls.ca has no certificate that can be read")
		}
	}
	c.close(key)
	p := &pool{client: dispatch.NewClient(config), settings: settings, used: time.Now()}
	c.pools[key] = p
	return p.client, nil
}

// close closes the HTTP connections to a service that are idle. Others close when they have been idle for a while.
func (c *connections) close(key connectionKey) {
	if p := c.pools[key]; p != nil {
		p.client.Close()
		delete(c.pools, key)
	}
}

// idleAfter is how long a client is kept without calls.
const idleAfter = 5 * time.Minute

// closeIdle closes what has not been used for a while.
func (c *connections) closeIdle() {
	if time.Since(c.closed) < idleAfter {
		return
	}
	c.closed = time.Now()
	for key, p := range c.pools {
		if time.Since(p.used) > idleAfter {
			c.close(key)
		}
	}
}

// closeAll closes all HTTP connections that are idle.
func (c *connections) closeAll() {
	for key := range c.pools {
		c.close(key)
	}
}

// find reads how services are called. What cannot be called is missing from the result, and rests with a finding.
func (c *connections) find(ctx context.Context, q *queries.Queries, keys []connectionKey) (map[connectionKey]*endpoint, error) {
	var p queries.ConnectionEndpointsParams
	for _, k := range keys {
		p.Tenants, p.Names = append(p.Tenants, k.tenant), append(p.Names, k.name)
	}
	rows, err := q.ConnectionEndpoints(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("connections: %w", err)
	}
	found := make(map[connectionKey]*endpoint, len(rows))
	findings := queries.ConnectionFindingParams{Rest: outbox.Interval(c.config.Rest)}
	for _, row := range rows {
		key, finding := connectionKey{row.TenantID, row.Name}, ""
		if conn, err := c.open(row); err != nil {
			finding = err.Error()
		} else {
			found[key] = conn
		}
		if finding == "" && !row.Resting {
			c.report(ctx, key, "")
			continue
		}
		findings.Tenants, findings.Names = append(findings.Tenants, key.tenant), append(findings.Names, key.name)
		findings.Findings = append(findings.Findings, finding)
		c.report(ctx, key, finding)
	}
	if len(findings.Names) > 0 {
		if err := q.ConnectionFinding(ctx, findings); err != nil {
			return nil, fmt.Errorf("findings of connections: %w", err)
		}
	}
	return found, nil
}

// report logs once why the tasks of a connection wait, and that they go on.
func (c *connections) report(ctx context.Context, key connectionKey, finding string) {
	if c.reported[key] == finding {
		return
	}
	if c.reported[key] = finding; finding == "" {
		delete(c.reported, key)
		c.config.Logger.InfoContext(ctx, "a connection can be used again", "tenant", key.tenant, "connection", key.name)
		return
	}
	c.config.Logger.WarnContext(ctx, "a connection cannot be used, so its tasks wait", "tenant", key.tenant, "connection", key.name, "finding", finding)
}
