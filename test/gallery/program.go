// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

import "fmt"

// program is one entry of the gallery.
type program struct {
	name     string
	packages []string // the first is whose version is told
	checks   string   // what the program wants, for the document
	// forge makes the keys in a shell: a file $V/x is the volume's file x, one with -- in its name that of a folder, and $E/X the
	// environment variable X of the script's container. $PASSWORD is the counterpart's.
	forge string
	mount string // the volume's path
	// script uses the key. It runs as user 1000, with every volume.
	script string
	works  string // pattern that is printed where it works
	// attributes of this driver's volume; without uid it is 1000's.
	attributes map[string]string
	attempts   []attempt
}

// attempt is an in-tree secret volume, and what the program says to it.
type attempt struct {
	mode    int32
	fsGroup bool
	subPath bool // each file is mounted by itself
	ends    ending
	says    string // pattern
}

type ending int

const (
	refuses ending = iota // the script fails
	warns                 // it does not, but the program warns
	accepts
)

func (e ending) String() string { return [...]string{"refused", "warned", "worked"}[e] }

// String says how a user writes it.
func (a attempt) String() string {
	text := fmt.Sprintf("defaultMode: %04o", a.mode)
	if a.mode == 0o644 {
		text = "the default (0644)"
	}
	if a.fsGroup {
		text += ", fsGroup"
	}
	if a.subPath {
		text += ", subPath"
	}
	return text
}

// three are the attempts of every user: as it comes, as the program's manual says, and so that user 1000 can read it.
func three(open, private, group attempt) []attempt {
	open.mode, private.mode, group.mode = 0o644, 0o400, 0o400
	group.fsGroup = true
	return []attempt{open, private, group}
}
