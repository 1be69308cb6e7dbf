package main

import (
	"fmt"
	"os"
	"syscall"
)

// mountTmpfs makes a folder that is a file system of its own.
func mountTmpfs(dir, size string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755,size="+size); err != nil {
		return fmt.Errorf("%w: a file system cannot be mounted here: %w", errSkip, err)
	}
	return nil
}

func unmount(dir string) { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }
