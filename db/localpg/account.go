package localpg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// account is the user that the server runs as when root starts it. A nil *account is the current user.
type account struct {
	name     string
	uid, gid uint32

	// closedWay: the account may not enter a parent of its folder, such as one that root made by mktemp -d. Its
	// processes then keep root's privilege to search folders, and no other.
	closedWay bool
}

// become makes a command run as the account, in a folder, or in / if the account may not enter the folder by
// itself.
func (a *account) become(cmd *exec.Cmd, dir string) {
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{}
	if a == nil {
		return
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	if a.closedWay {
		// The process changes the folder before it has the privilege.
		cmd.Dir = "/"
		searchFolders(cmd.SysProcAttr)
	}
}

// chown gives a file to the account. It does not follow links, since another user may own the folder and have made
// one there.
func (a *account) chown(path string) error {
	if a == nil {
		return nil
	}
	if err := os.Lchown(path, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("localpg: hand over to user %s: %w", a.name, err)
	}
	return nil
}

// accountFor returns the account for a folder that exists, or nil unless this process is root's. It is the owner of
// the folder, who is not locked out of it then; or, if root owns it, an unprivileged user of the system.
func accountFor(home string) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	data := filepath.Join(home, "data")
	for _, dir := range []string{data, home} {
		uid, err := ownerOf(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("localpg: %w", err)
		case uid != 0:
			u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
			if err != nil {
				// PostgreSQL itself looks its user up and gives up when there is none.
				return nil, fmt.Errorf("localpg: %s belongs to a user this machine does not know: %w", dir, err)
			}
			return newAccount(u)
		case dir == data:
			return nil, fmt.Errorf("localpg: %s belongs to root, and PostgreSQL refuses to run as root: "+
				"run \"chown -R postgres %s\"", dir, dir)
		}
	}
	return systemAccount()
}

// systemAccount returns the unprivileged user for folders that root owns.
func systemAccount() (*account, error) {
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			return newAccount(u)
		}
	}
	return nil, errors.New("localpg: PostgreSQL refuses to run as root, and this machine has " +
		"neither a user postgres nor a user nobody: run pawl as another user")
}

func newAccount(u *user.User) (*account, error) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("localpg: user %s: %w", u.Username, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("localpg: user %s: %w", u.Username, err)
	}
	return &account{name: u.Username, uid: uint32(uid), gid: uint32(gid)}, nil
}

func ownerOf(path string) (uint32, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Uid, nil
}

// checkReach returns an error unless the account can run the server and enter its folder. It tries both, since
// permission bits are not all that counts. It reads the bits only to name the folder that is in the way.
func (a *account) checkReach(ctx context.Context, bin Binaries, home string) error {
	if a == nil {
		return nil
	}
	program := filepath.Join(bin.Dir, "postgres")
	if err := a.try(ctx, program, "/"); err != nil {
		return a.blocked(program, "name another PostgreSQL in "+BinEnv, err)
	}
	err := a.try(ctx, program, home)
	if errors.Is(err, fs.ErrPermission) {
		a.closedWay = true
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `cd "$1"`, "sh", home)
		a.become(cmd, home)
		if cmd.Run() == nil {
			return nil
		}
	}
	if err != nil {
		return a.blocked(home, "choose another folder than "+home, err)
	}
	return nil
}

// try runs a program of the server in a folder.
func (a *account) try(ctx context.Context, program, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	a.become(cmd, dir)
	return cmd.Run()
}

// blocked returns the error for a path that the account cannot use. instead says what else would help.
func (a *account) blocked(path, instead string, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("localpg: run PostgreSQL as user %s: %w", a.name, err)
	}
	if dir, ok := a.firstClosed(path); ok {
		return fmt.Errorf("localpg: PostgreSQL refuses to run as root and so runs as user %s, who may not enter %s: "+
			"run \"chmod o+x %s\", or %s", a.name, dir, dir, instead)
	}
	return fmt.Errorf("localpg: PostgreSQL refuses to run as root and so runs as user %s, who may not use %s: %w",
		a.name, path, err)
}

// firstClosed returns the first folder on the way to path, path included, that the account may not enter.
func (a *account) firstClosed(path string) (string, bool) {
	var way []string
	for dir := path; ; dir = filepath.Dir(dir) {
		way = append(way, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	slices.Reverse(way)
	for _, dir := range way {
		if info, err := os.Stat(dir); err == nil && !a.mayExecute(info) {
			return dir, true
		}
	}
	return "", false
}

// mayExecute reports whether the permission bits let the account run a file or enter a folder.
func (a *account) mayExecute(info fs.FileInfo) bool {
	stat, mode := info.Sys().(*syscall.Stat_t), info.Mode().Perm()
	switch {
	case stat.Uid == a.uid:
		return mode&0o100 != 0
	case stat.Gid == a.gid:
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}
