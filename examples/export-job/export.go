package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"github.com/pawl-fsm/pawl/examples/worker/loop"
)

// An exporter writes orders to files of a folder.
type exporter struct{ orders, dir string }

// A result is what the instance is told.
type result struct {
	File   string `json:"file"`
	Orders int    `json:"orders"`
}

// export writes the orders of a month. The file has the key of the task in its name and appears when it is whole. So there is
// one file, however often the work is begun: another attempt replaces it by the same.
func (e exporter) export(ctx context.Context, t loop.Task) (any, error) {
	var input struct{ Month string }
	if err := json.Unmarshal(t.Input, &input); err != nil {
		return nil, fmt.Errorf("%w: %w", loop.ErrPermanent, err)
	}
	done := result{File: input.Month + "-" + t.Key + ".csv"}
	part, err := os.CreateTemp(e.dir, done.File+".part-*")
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = part.Close()
		_ = os.Remove(part.Name()) // It is gone when it was renamed.
	}()
	lines := csv.NewWriter(part)
	for page := 1; ; page++ {
		list, err := e.page(ctx, input.Month, page)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			break
		}
		for _, o := range list {
			if err := lines.Write([]string{o.ID, strconv.Itoa(o.Amount)}); err != nil {
				return nil, err
			}
		}
		done.Orders += len(list)
		t.Progress(map[string]int{"orders": done.Orders})
	}
	if lines.Flush(); lines.Error() != nil {
		return nil, lines.Error()
	}
	if err := part.Sync(); err != nil {
		return nil, err
	}
	return done, os.Rename(part.Name(), filepath.Join(e.dir, done.File))
}

// page reads a page of orders, which is empty behind the last one.
func (e exporter) page(ctx context.Context, month string, page int) (list []order, err error) {
	query := url.Values{"month": {month}, "page": {strconv.Itoa(page)}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, e.orders+"/orders?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the orders: %s", answer.Status)
	}
	return list, json.NewDecoder(answer.Body).Decode(&list)
}
