package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

const (
	pageSize = 100
	pages    = 5
)

// An order is a line of the export.
type order struct {
	ID     string `json:"id"`
	Amount int    `json:"amount"`
}

// orders is a service that has five pages of orders for each month, and takes its time for each: GET /orders?month=&page=.
func orders(slow time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, err := strconv.Atoi(r.URL.Query().Get("page"))
		if err != nil || page < 1 {
			http.Error(w, "page is a number from 1 on", http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(slow):
		case <-r.Context().Done():
			return
		}
		list := []order{}
		for n := (page-1)*pageSize + 1; page <= pages && n <= page*pageSize; n++ {
			list = append(list, order{ID: fmt.Sprintf("%s/%d", r.URL.Query().Get("month"), n), Amount: n})
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list) // Nobody is left to tell if it fails.
	})
}
