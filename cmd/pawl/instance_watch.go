package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// instanceWatch prints the steps of an instance from its stream.
type instanceWatch struct {
	oneInstance
	From string `enum:"now,start" default:"now" help:"Where to begin: now, or at the start of the history."`
}

const (
	// maxStep is the largest size of a line of a stream in bytes: a step has a context and a payload.
	maxStep = 4 << 20
	// maxSilence is the longest time without a line, be it a heartbeat, before the command connects again.
	maxSilence = 30 * time.Second
)

// Run prints each step as it is made, until the instance is final or the command is
// interrupted. If the stream breaks, it connects again and resumes after the last step.
func (i *instanceWatch) Run(c *console) error {
	var at following
	const most = 5 * time.Second
	for backoff := 100 * time.Millisecond; ; backoff = min(2*backoff, most) {
		before := at
		ended, err := i.follow(c, &at)
		var refused *problem
		switch {
		case ended || c.Err() != nil:
			return nil
		case !at.connected:
			return err // The address may be wrong, so it does not try again.
		case errors.As(err, &refused) && refused.Status < http.StatusInternalServerError && refused.Status != http.StatusTooManyRequests:
			return err
		}
		if at != before {
			backoff = 100 * time.Millisecond
		}
		c.log.Debug("connecting again", "error", err)
		select {
		case <-time.After(backoff/2 + rand.N(backoff)):
		case <-c.Done():
			return nil
		}
	}
}

// following is the place of the command in the stream.
type following struct {
	connected bool
	last      string // The id of the last message.
}

// follow prints a stream from behind the last message on, until the stream breaks. ended is true if no message
// can follow.
func (i *instanceWatch) follow(c *console, at *following) (ended bool, err error) {
	ctx, cancel := context.WithCancel(c)
	defer cancel()
	silence := time.AfterFunc(maxSilence, cancel)
	defer silence.Stop()
	target := strings.TrimRight(i.Server, "/") + i.path() + "/events?" + url.Values{"from": {i.From}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Accept", "text/event-stream")
	if at.last != "" {
		req.Header.Set("Last-Event-ID", at.last)
	}
	if i.Token != "" {
		req.Header.Set("Authorization", "Bearer "+i.Token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, unreachable(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusNoContent {
		return true, nil
	}
	if err := i.refusal(res, "text/event-stream"); err != nil {
		return false, err
	}
	at.connected = true
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxStep)
	var id, kind, data string
	for lines.Scan() {
		silence.Reset(maxSilence)
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "id":
			id = value
		case "event":
			kind = value
		case "data":
			data = value // The service sends one line.
		case "":
			if lines.Text() != "" {
				continue // A comment, which is a heartbeat.
			}
			if data != "" {
				if ended, err = i.print(c, kind, data); err != nil || ended {
					return ended, err
				}
			}
			if id != "" {
				at.last = id
			}
			kind, data = "", ""
		}
	}
	return false, lines.Err()
}

// print prints a message, and returns whether its step is the last one.
func (i *instanceWatch) print(c *console, kind, data string) (final bool, err error) {
	if kind == "error" {
		p := &problem{}
		if err := json.Unmarshal([]byte(data), p); err != nil {
			return false, err
		}
		return false, p
	}
	var step struct {
		stepAnswer
		Status string `json:"status"`
	}
	if err := json.Unmarshal([]byte(data), &step); err != nil {
		return false, fmt.Errorf("cannot read the service's message: %w", err)
	}
	if i.JSON {
		c.printf("%s\n", data)
	} else {
		status := ""
		if step.Status != "active" {
			status = " (" + step.Status + ")"
		}
		c.printf("%s  %s  %s  %s -> %s%s  by %s\n", step.At, strconv.FormatInt(step.Version, 10),
			strings.TrimSpace(step.Kind+" "+orDash(step.Event)), orDash(step.From), step.To, status, step.Actor)
	}
	return step.Status != "active", nil
}
