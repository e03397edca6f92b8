// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

import (
	"fmt"
	"maps"
	"slices"
)

// program is one entry of the gallery, and one file of examples/.
type program struct {
	name     string
	packages []string // The document shows the version of the first one.
	suite    string   // the suite of Debian with the packages; empty for the suite of the machine
	checks   string   // what the program requires of its file, for the document and the example
	// forge is a shell script that makes the keys: a file $V/x becomes the volume's file x (if its name contains --, a
	// file in a directory), and a file $E/X becomes the environment variable X of the script's container. $PASSWORD is the
	// password of the counterpart. A file $U/x is the later content of x: the Secret changes after the script has made the
	// file /tmp/ready. The script of such a program also has the whole volume in the directory watched.
	forge   string
	mount   string // the path of the volume
	subPath bool   // whether each file of the volume has a mount of its own, in the directory mount
	// environment is the environment of the container that uses the key.
	environment map[string]string
	// script uses the key. It runs as user 1000, with every volume.
	script string
	works  string // a pattern for the output of the script if the program works
	// attributes are those of this driver's volume. Without uid, user 1000 owns the files.
	attributes map[string]string
	attempts   []attempt
	example    example
}

// example has the parts of a file of examples/ that replace the gallery's keys and script.
type example struct {
	// name is the name of the file, of the Secret and of the pod.
	name    string
	command []string
	// content is the data of the Secret. Its keys are those that the forge makes.
	content map[string]string
}

// watched is the directory with the whole volume, for the script of a program whose Secret changes.
const watched = "/watched"

// attempt is an in-tree secret volume, with the expected output of the program.
type attempt struct {
	mode    int32
	fsGroup bool
	subPath bool              // whether each file has a mount of its own
	items   map[string]string // the path of each key; nil for the paths of this driver's volume
	ends    ending
	says    string // pattern
}

type ending int

const (
	refuses  ending = iota // the script fails
	warns                  // the script works, but the program warns
	outdated               // the script fails because the program has the content of before the change
	accepts
)

func (e ending) String() string { return [...]string{"refused", "warned", "stayed old", "worked"}[e] }

// fails reports whether the exit code of the script is not 0.
func (e ending) fails() bool { return e == refuses || e == outdated }

// String returns the volume as a user writes it.
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
	for _, key := range slices.Sorted(maps.Keys(a.items)) {
		text += fmt.Sprintf(", %s as %s", key, a.items[key])
	}
	return text
}

// three returns the attempts that every user makes: the default mode, the mode of the program's manual, and that mode
// with an fsGroup, so that user 1000 can read the file.
func three(open, private, group attempt) []attempt {
	open.mode, private.mode, group.mode = 0o644, 0o400, 0o400
	group.fsGroup = true
	return []attempt{open, private, group}
}
