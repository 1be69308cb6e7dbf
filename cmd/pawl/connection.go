package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
)

// connectionCommand is `pawl connection`.
type connectionCommand struct {
	Put    connectionPut    `cmd:"" help:"Make a connection, or replace all of its settings."`
	List   connectionList   `cmd:"" help:"List connections by name."`
	Show   connectionShow   `cmd:"" help:"Show a connection and the health of its service."`
	Delete connectionDelete `cmd:"" help:"Delete a connection. Tasks that name it wait until there is one again."`
}

// connectionAnswer is a connection as the API shows it. raw is the whole answer.
type connectionAnswer struct {
	raw     json.RawMessage
	Name    string `json:"name"`
	BaseURL string `json:"base_url"`
	Auth    struct {
		Type string `json:"type"`
		User string `json:"user"`
		Name string `json:"name"`
		Env  string `json:"env"`
	} `json:"auth"`
	Timeout     *string `json:"timeout"`
	Concurrency int     `json:"concurrency"`
	Version     int64   `json:"version"`
	Failures    int     `json:"failures"`
	RestsUntil  *string `json:"rests_until"`
	Finding     *string `json:"finding"`
}

// UnmarshalJSON keeps the whole answer for --json.
func (a *connectionAnswer) UnmarshalJSON(data []byte) error {
	type plain connectionAnswer
	a.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(a))
}

// MarshalJSON returns the whole answer.
func (a connectionAnswer) MarshalJSON() ([]byte, error) { return a.raw, nil }

// auth words how pawl authenticates itself.
func (a *connectionAnswer) auth() string {
	text := a.Auth.Type
	if of := a.Auth.User + a.Auth.Name; of != "" {
		text += " " + of
	}
	if a.Auth.Env != "" {
		text += " from " + a.Auth.Env
	}
	return text
}

// showConnection sends a request and prints the connection that is its answer.
func (f *clientFlags) showConnection(c *console, request call) error {
	var a connectionAnswer
	if _, err := f.do(c, request, &a); err != nil {
		return err
	}
	if f.JSON {
		return c.printJSON(a)
	}
	timeout := "that of the task"
	if a.Timeout != nil {
		timeout = *a.Timeout
	}
	c.printf("name         %s\nbase_url     %s\nauth         %s\ntimeout      %s\nconcurrency  %d\nversion      %d\nhealth       %s\n",
		a.Name, a.BaseURL, a.auth(), timeout, a.Concurrency, a.Version, health(a.Finding, a.RestsUntil, a.Failures))
	return nil
}

// connectionPut makes or replaces a connection.
type connectionPut struct {
	oneConnection
	changeFlags
	BaseURL     string            `required:"" placeholder:"URL" help:"Where the service is: http or https, without user, query and fragment."`
	Auth        string            `enum:"none,bearer,basic,header" default:"none" help:"How pawl authenticates itself: none, bearer, basic or header."`
	User        string            `help:"The user of basic."`
	HeaderName  string            `placeholder:"NAME" help:"The header of --auth header."`
	Secret      string            `type:"secret" secret:"" placeholder:"@FILE" env:"PAWL_CONNECTION_SECRET" help:"The token, password or header value, from the environment or a file. Without it and --env the secret that there is stays, if it goes to the same place in the same way."`
	Env         string            `placeholder:"NAME" help:"Environment variable of the service that has the secret."`
	Header      map[string]string `mapsep:"none" placeholder:"NAME=VALUE" help:"A header that is sent with each request, and is no secret; may be repeated."`
	Timeout     string            `placeholder:"DURATION" help:"The longest that an attempt may take, such as 10s; by default what the task says."`
	Concurrency int               `help:"How many calls each replica makes at a time, from 1 to 512; by default 32."`
	CA          string            `name:"ca" placeholder:"FILE" help:"Certificates in PEM, of which one must have signed the service's."`
}

func (p *connectionPut) Run(c *console) error {
	if p.Secret != "" && p.Env != "" {
		return errors.New("give the secret or --env, not both")
	}
	auth := members(map[string]string{
		"type": p.Auth, "user": p.User, "name": p.HeaderName, "secret": p.Secret, "env": p.Env,
	}, "", nil)
	body := map[string]any{"base_url": p.BaseURL, "auth": auth}
	if len(p.Header) > 0 {
		body["headers"] = p.Header
	}
	if p.Timeout != "" {
		body["timeout"] = p.Timeout
	}
	if p.Concurrency != 0 {
		body["concurrency"] = p.Concurrency
	}
	if p.CA != "" {
		text, err := os.ReadFile(p.CA)
		if err != nil {
			return err
		}
		body["tls"] = map[string]string{"ca": string(text)}
	}
	return p.showConnection(c, call{method: http.MethodPut, path: p.path(), body: body, ifMatch: ifMatch(p.IfMatch)})
}

// changeFlags are the precondition of a change.
type changeFlags struct {
	IfMatch int64 `help:"Only if the connection is at this version."`
}

// connectionList prints all connections.
type connectionList struct {
	clientFlags
	Limit int `default:"50" help:"Largest number of connections; 0 for all."`
}

func (l *connectionList) Run(c *console) error {
	items, err := pages[connectionAnswer](c, &l.clientFlags, "/v1/connections", url.Values{}, l.Limit)
	if err != nil {
		return err
	}
	if l.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("NAME\tBASE URL\tAUTH\tHEALTH")
	for _, item := range items {
		table.row("%s\t%s\t%s\t%s", item.Name, item.BaseURL, item.auth(), health(item.Finding, item.RestsUntil, item.Failures))
	}
	return table.Flush()
}

// oneConnection has the arguments of a command for one connection.
type oneConnection struct {
	clientFlags
	Name string `arg:"" name:"name" help:"Name of the connection."`
}

func (o *oneConnection) path() string { return "/v1/connections/" + url.PathEscape(o.Name) }

// connectionShow prints a connection.
type connectionShow struct{ oneConnection }

func (s *connectionShow) Run(c *console) error {
	return s.showConnection(c, call{method: http.MethodGet, path: s.path()})
}

// connectionDelete deletes a connection.
type connectionDelete struct {
	oneConnection
	changeFlags
}

func (d *connectionDelete) Run(c *console) error {
	_, err := d.do(c, call{method: http.MethodDelete, path: d.path(), ifMatch: ifMatch(d.IfMatch)}, nil)
	return err
}
