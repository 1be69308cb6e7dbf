package definition

import "strings"

// Nearest returns the known name that is most like a misspelled one, or "" if none is like it. Case does not
// count, nor do the states around a state. Otherwise it is the name with the fewest edits, at most one for each
// three characters.
func Nearest(name string, known []string) (near string) {
	best := len(name)/3 + 1
	for _, k := range known {
		edits := distance(strings.ToLower(name), strings.ToLower(k))
		if strings.HasSuffix(strings.ToLower(k), "."+strings.ToLower(name)) {
			edits = 0
		}
		if edits < best {
			near, best = k, edits
		}
	}
	return near
}

// distance counts the letters that are to be added, left out, replaced, or exchanged with the next, to make b of a.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		for j := range rows[i] {
			switch {
			case i == 0:
				rows[i][j] = j
				continue
			case j == 0:
				rows[i][j] = i
				continue
			}
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(x)][len(y)]
}
