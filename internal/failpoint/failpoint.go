// SPDX-License-Identifier: Apache-2.0

// Package failpoint marks the steps at which tests kill the driver, stop it, or make a step fail. Without the build tag
// "failpoints" a point is an empty function that the compiler inlines: the program has neither its code nor its name.
//
// With the tag, the environment variable FSUSER_FAILPOINTS names a directory of armed points. A file in it has the name
// of a point, and says what the next process that reaches the point does:
//
//	kill       ends by SIGKILL
//	panic      panics
//	error      returns an error, if the step can
//	sleep 2s   sleeps
//	pause      renames the file to NAME.paused, and goes on when that is removed
//
// With a number behind it, as in "kill 3", the point is passed that many times first. A point that has fired is
// disarmed: its file is gone.
//
// Each name stands in the source once, as a literal: a test finds them all there.
package failpoint
