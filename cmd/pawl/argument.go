package main

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// refuseEmpty refuses an argument that is given but empty, and a list with an empty element. As a rule
// they come from a script in which a variable is not set. If they counted as not given, the command would
// do more than the script means. An environment variable that is set to nothing does count as not given.
func refuseEmpty(parsed *kong.Context, args []string) error {
	flags := map[string]*kong.Flag{}
	for _, p := range parsed.Path {
		switch {
		case p.Flag != nil:
			flags["--"+p.Flag.Name] = p.Flag
		case p.Positional != nil && parsed.Value(p).IsZero() && parsed.Value(p).Kind() == reflect.String:
			return fmt.Errorf("<%s> must not be empty", p.Positional.Name)
		}
	}
	// A parsed list no longer has all of its empty elements, so the arguments themselves are read.
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		if !joined && i+1 < len(args) {
			value = args[i+1]
		}
		switch flag := flags[name]; {
		case flag == nil || flag.IsBool():
		case value == "":
			return fmt.Errorf("%s must not be empty", name)
		case flag.IsSlice() && slices.Contains(strings.Split(value, string(flag.Tag.Sep)), ""):
			return fmt.Errorf("%s must have no empty element", name)
		}
	}
	return nil
}
