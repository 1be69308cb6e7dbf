package main

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// secret reads flags of the type secret: the secret itself, or @FILE to read it from a file, without the line break at
// its end. Flags with the tag secret take only @FILE on the command line; see checkArguments.
func secret(ctx *kong.DecodeContext, target reflect.Value) error {
	var text string
	if err := ctx.Scan.PopValueInto("value", &text); err != nil {
		return err
	}
	text, err := secretText(text)
	target.SetString(text)
	return err
}

// secretText returns a secret, which @FILE reads from a file.
func secretText(text string) (string, error) {
	file, isFile := strings.CutPrefix(text, "@")
	if !isFile {
		return text, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if text = strings.TrimRight(string(data), "\r\n"); text == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	return text, nil
}

// secretVariable returns the secret in an environment variable, or in the file that it names; empty if it is not set.
func secretVariable(name string) (string, error) {
	text, err := secretText(os.Getenv(name))
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return text, nil
}

// checkArguments refuses a secret, since every user of the machine sees the arguments of a process. It also refuses an
// argument that is given but empty, and a list with an empty element. As a rule these come from a script in which a
// variable is not set. If they counted as not given, the command would do more than the script means. An environment
// variable that is set to nothing does count as not given.
func checkArguments(parsed *kong.Context, args []string) error {
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
		case flag.Tag.Has("secret") && value != "" && !strings.HasPrefix(value, "@"):
			return fmt.Errorf("%s must not be on the command line, where every user of this machine sees it: set %s, or give %s @FILE", name, flag.Envs[0], name)
		case value == "":
			return fmt.Errorf("%s must not be empty", name)
		case flag.IsSlice() && slices.Contains(strings.Split(value, string(flag.Tag.Sep)), ""):
			return fmt.Errorf("%s must have no empty element", name)
		}
	}
	return nil
}
