package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/google/uuid"
)

const (
	callTries  = 5
	callPause  = 100 * time.Millisecond // After the first try; it doubles.
	callWithin = 30 * time.Second       // One try.
)

// call sends one request that is not part of a load, with a JSON body unless it is nil, and decodes
// the answer unless into is nil. A request that is not answered, or answered with 429 or 503, is
// sent again with the same idempotency key.
func (b *benchmark) call(ctx context.Context, method, path string, body json.RawMessage, into any) error {
	key := uuid.NewString()
	wait := callPause
	for try := 1; ; try++ {
		again, err := b.callOnce(ctx, b.token, key, method, path, body, into)
		if err == nil || !again || try == callTries || ctx.Err() != nil {
			return err
		}
		pause(ctx, wait)
		wait *= 2
	}
}

func (b *benchmark) callOnce(ctx context.Context, token, key, method, path string, body json.RawMessage, into any) (again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+b.service.address+path, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	if method == http.MethodPost {
		request.Header.Set("Idempotency-Key", key)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return true, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return true, err
	}
	if response.StatusCode >= http.StatusBadRequest {
		again = response.StatusCode == http.StatusTooManyRequests || response.StatusCode == http.StatusServiceUnavailable
		return again, fmt.Errorf("%s %s: %s: %.300s", method, path, response.Status, text)
	}
	if into == nil {
		return false, nil
	}
	return false, json.Unmarshal(text, into)
}
