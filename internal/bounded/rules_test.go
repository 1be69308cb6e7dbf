package bounded_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// root is the folder of the module.
const root = "../.."

// TestTestsAreBounded keeps the rules of the package's comment: no test waits for what only the timeout of its package
// ends.
func TestTestsAreBounded(t *testing.T) {
	t.Parallel()
	read := 0
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		faults, concerned, err := check(path, source)
		if err != nil {
			return err
		}
		for _, f := range faults {
			t.Error(strings.TrimPrefix(f, root+"/"))
		}
		if concerned {
			read++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if read < 100 {
		t.Errorf("only %d files have tests", read)
	}
}

// check returns the faults of a file, each as "file:line: what is wrong". Only files that import testing are concerned.
func check(of string, source []byte) (faults []string, concerned bool, err error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, of, source, parser.ParseComments)
	if err != nil {
		return nil, false, err
	}
	if !slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"testing"` }) {
		return nil, false, nil
	}
	c := &checker{files: files, packages: packages(file), reasons: reasons(files, file, source), channels: channels(file)}
	c.walk(file, place{})
	for _, reason := range c.reasons {
		if !reason.used {
			c.faults = append(c.faults, fault{reason.line, `nothing here needs a reason: remove the comment "bounded:"`})
		}
	}
	slices.SortFunc(c.faults, func(a, b fault) int { return a.line - b.line })
	for _, f := range c.faults {
		faults = append(faults, fmt.Sprintf("%s:%d: %s", of, f.line, f.what))
	}
	return faults, true, nil
}

// What is wrong, and what to do instead.
const (
	sleeps     = "it sleeps: await what happens with bounded.Until, and show that something does not happen by order"
	waits      = "it waits without a limit: use bounded.Receive, bounded.Wait, bounded.Result or a bounded.Gate"
	loops      = "nothing counts this loop: use bounded.Until, or say why it ends"
	bodyOnly   = "t.Context() ends only after the body of the test: use bounded.Context"
	noCleanup  = "t.Context() has ended before a cleanup runs: use bounded.Context"
	noDeadline = "it has no deadline: use bounded.Context, bounded.Command or bounded.Start"
)

type fault struct {
	line int
	what string
}

// A reason is a comment that says why a rule does not fit a line.
type reason struct {
	line int // that the comment begins in
	used bool
}

// reasons returns them by the line that they are about.
func reasons(files *token.FileSet, file *ast.File, source []byte) map[int]*reason {
	lines := strings.Split(string(source), "\n")
	found := map[int]*reason{}
	for _, group := range file.Comments {
		why, is := strings.CutPrefix(group.Text(), "bounded:")
		if !is || strings.TrimSpace(why) == "" {
			continue
		}
		begin, about := files.Position(group.Pos()).Line, files.Position(group.End()).Line
		if strings.HasPrefix(strings.TrimSpace(lines[begin-1]), "//") {
			about++
		}
		found[about] = &reason{line: begin}
	}
	return found
}

// packages returns, by the names that the file has for them, the last words of the paths that it imports.
func packages(file *ast.File) map[string]string {
	names := map[string]string{}
	for _, i := range file.Imports {
		if i.Name != nil {
			names[i.Name.Name] = path.Base(strings.Trim(i.Path.Value, `"`))
		}
	}
	return names
}

// channels returns the names that the file gives to channels that it makes.
func channels(file *ast.File) map[string]bool {
	names := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		assign, is := n.(*ast.AssignStmt)
		if !is || len(assign.Lhs) != len(assign.Rhs) {
			return true
		}
		for i, right := range assign.Rhs {
			call, is := right.(*ast.CallExpr)
			if !is || len(call.Args) == 0 || name(call.Fun) != "make" {
				continue
			}
			if _, is := call.Args[0].(*ast.ChanType); is {
				names[name(assign.Lhs[i])] = true
			}
		}
		return true
	})
	return names
}

// A place says what runs the code that is looked at.
type place struct {
	goroutine bool // one that somebody waits for, with a limit
	bubble    bool // of synctest
	cleanup   bool
}

// unwatched says that code here may block.
func (p place) unwatched() bool { return p.goroutine || p.bubble }

type checker struct {
	files    *token.FileSet
	packages map[string]string
	reasons  map[int]*reason
	channels map[string]bool
	faults   []fault
}

// report notes a fault, unless a reason is given there.
func (c *checker) report(at token.Pos, what string) {
	line := c.files.Position(at).Line
	if reason := c.reasons[line]; reason != nil {
		reason.used = true
		return
	}
	c.faults = append(c.faults, fault{line, what})
}

func (c *checker) walk(root ast.Node, in place) {
	ast.Inspect(root, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			c.goroutine(n.Call, in)
			return false
		case *ast.CallExpr:
			return c.call(n, in)
		case *ast.UnaryExpr:
			if n.Op != token.ARROW {
				return true
			}
			if isAfter(n) && !in.bubble {
				c.report(n.Pos(), sleeps)
			} else if !in.unwatched() {
				c.report(n.Pos(), waits)
			}
		case *ast.SelectStmt:
			c.choice(n, in)
			return false
		case *ast.ForStmt:
			if !in.unwatched() && !counted(n) {
				c.report(n.Pos(), loops)
			}
		case *ast.RangeStmt:
			if !in.unwatched() && c.channels[name(n.X)] {
				c.report(n.Pos(), loops)
			}
		}
		return true
	})
}

// goroutine walks a call of which the function runs in a goroutine of its own.
func (c *checker) goroutine(call *ast.CallExpr, in place) {
	for _, arg := range call.Args {
		c.walk(arg, in)
	}
	in.goroutine, in.cleanup = true, false
	c.walk(call.Fun, in)
}

// call looks at a call and returns whether the parts of it are still to be walked.
func (c *checker) call(call *ast.CallExpr, in place) bool {
	called := name(call.Fun)
	if alias, rest, is := strings.Cut(called, "."); is && c.packages[alias] != "" {
		called = c.packages[alias] + "." + rest
	}
	if sel, is := call.Fun.(*ast.SelectorExpr); is {
		inner := in
		switch sel.Sel.Name {
		case "Go":
			inner.goroutine, inner.cleanup = true, false
		case "Cleanup":
			inner.cleanup = true
		case "Wait":
			if len(call.Args) == 0 && called != "synctest.Wait" && !in.unwatched() {
				c.report(sel.Sel.Pos(), waits)
			}
		case "Done", "Err":
			if isTestContext(sel.X) && !in.cleanup {
				c.report(sel.Sel.Pos(), bodyOnly)
			}
		}
		if called == "synctest.Test" {
			inner.bubble = true
		}
		if inner != in {
			for _, arg := range call.Args {
				c.walk(arg, inner)
			}
			c.walk(call.Fun, in)
			return false
		}
	}
	switch called {
	case "time.Sleep", "time.Tick":
		if !in.bubble {
			c.report(call.Pos(), sleeps)
		}
	case "exec.Command", "http.NewRequest", "http.Get", "http.Head", "http.Post", "http.PostForm":
		c.report(call.Pos(), noDeadline)
	case "exec.CommandContext", "http.NewRequestWithContext":
		if isTestContext(call.Args[0]) {
			c.report(call.Pos(), noDeadline)
		}
	case "context.WithoutCancel":
		if isTestContext(call.Args[0]) {
			c.report(call.Pos(), noDeadline)
			return false
		}
	}
	if in.cleanup && isTestContext(call) {
		c.report(call.Pos(), noCleanup)
	}
	return true
}

// choice looks at a select.
func (c *checker) choice(choice *ast.SelectStmt, in place) {
	limited := in.unwatched()
	for _, s := range choice.Body.List {
		clause := s.(*ast.CommClause)
		from := received(clause.Comm)
		switch {
		case clause.Comm == nil: // the default
			limited = true
		case from == nil:
			c.walk(clause.Comm, in)
		default:
			limited = limited || isDeadline(from.X)
			if isAfter(from) && len(clause.Body) == 0 && !in.bubble {
				c.report(from.Pos(), sleeps)
			}
			c.walk(from.X, in)
		}
		for _, statement := range clause.Body {
			c.walk(statement, in)
		}
	}
	if !limited {
		c.report(choice.Pos(), waits)
	}
}

// received returns the receive of a select's case, or nil.
func received(statement ast.Stmt) *ast.UnaryExpr {
	var value ast.Expr
	switch s := statement.(type) {
	case *ast.ExprStmt:
		value = s.X
	case *ast.AssignStmt:
		value = s.Rhs[0]
	}
	from, _ := value.(*ast.UnaryExpr)
	return from
}

// counted says that a loop has a condition and something that moves it on.
func counted(loop *ast.ForStmt) bool {
	if call, is := loop.Cond.(*ast.CallExpr); is && name(call.Fun) == "b.Loop" {
		return true
	}
	switch loop.Post.(type) {
	case *ast.IncDecStmt, *ast.AssignStmt:
		return loop.Cond != nil
	}
	return false
}

// isDeadline says that a channel tells of the end of a time or of a context.
func isDeadline(channel ast.Expr) bool {
	switch channel := channel.(type) {
	case *ast.SelectorExpr:
		return channel.Sel.Name == "C"
	case *ast.CallExpr:
		called := name(channel.Fun)
		return called == "time.After" || strings.HasSuffix(called, ".Done")
	}
	return false
}

// isAfter says that it is <-time.After(…).
func isAfter(receive *ast.UnaryExpr) bool {
	call, is := receive.X.(*ast.CallExpr)
	return is && name(call.Fun) == "time.After"
}

// isTestContext says that it is t.Context(), for any name that a test goes by.
func isTestContext(e ast.Expr) bool {
	call, is := e.(*ast.CallExpr)
	if !is {
		return false
	}
	called := name(call.Fun)
	return slices.ContainsFunc([]string{"t", "tb", "b", "f"}, func(test string) bool {
		return called == test+".Context" || strings.HasSuffix(called, "."+test+".Context")
	})
}

// name writes an identifier or a selector as the source does: "a.b.c".
func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return name(e.X) + "." + e.Sel.Name
	case *ast.IndexExpr:
		return name(e.X)
	}
	return ""
}
