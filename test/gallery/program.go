// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

import "fmt"

// program is one entry of the gallery, and one file of examples/.
type program struct {
	name     string
	packages []string // the document shows the version of the first
	checks   string   // what the program requires of its file, for the document and the example
	// forge is a shell script that makes the keys: a file $V/x becomes the volume's file x (with -- in its name a file
	// in a directory), and a file $E/X becomes the environment variable X of the script's container. $PASSWORD is the
	// counterpart's.
	forge string
	mount string // the volume's path
	// environment of the container that uses the key.
	environment map[string]string
	// script uses the key. It runs as user 1000, with every volume.
	script string
	works  string // pattern of what the script prints where it works
	// attributes of this driver's volume; without uid, user 1000 owns the files.
	attributes map[string]string
	attempts   []attempt
	example    example
}

// example is what a file of examples/ has in place of the gallery's keys and script.
type example struct {
	// name of the file, of the Secret and of the pod.
	name    string
	command []string
	// content of the Secret, by key. The keys are those that the forge makes.
	content map[string]string
}

// attempt is an in-tree secret volume, and what the program says about it.
type attempt struct {
	mode    int32
	fsGroup bool
	subPath bool // each file has a mount of its own
	ends    ending
	says    string // pattern
}

type ending int

const (
	refuses ending = iota // the script fails
	warns                 // the script works, but the program warns
	accepts
)

func (e ending) String() string { return [...]string{"refused", "warned", "worked"}[e] }

// String is the volume as a user writes it.
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

// three are the attempts that every user makes: the default mode, the mode of the program's manual, and that mode with
// an fsGroup, so that user 1000 can read the file.
func three(open, private, group attempt) []attempt {
	open.mode, private.mode, group.mode = 0o644, 0o400, 0o400
	group.fsGroup = true
	return []attempt{open, private, group}
}
