// SPDX-License-Identifier: Apache-2.0

// Package failpoint marks the steps at which tests kill the driver, stop it, or make a step fail. Without the build tag
// "failpoints" a point is an empty function that the compiler inlines: the program has neither its code nor its name.
//
// With the tag, the environment variable FSUSER_FAILPOINTS names a directory of armed points. The name of a file in it
// is the name of a point. The content is the action of the next process that reaches the point:
//
//	kill       ends by SIGKILL
//	panic      panics
//	error      returns an error, if the step can
//	sleep 2s   sleeps
//	pause      renames the file to NAME.paused, and continues when that file is removed
//
// A number after the action, as in "kill 3", is the number of times that the point does nothing first. The action of a
// point removes its file, so the point is disarmed afterwards.
//
// The source contains each name once, as a literal, so that a test finds all names.
package failpoint
