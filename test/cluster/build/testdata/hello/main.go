// SPDX-License-Identifier: Apache-2.0

// Command hello is a tool to build in a test.
package main

var version string // set by the linker

func main() { println(version) }
