// SPDX-License-Identifier: Apache-2.0

package source_test

const memoryChild = "FSUSER_TEST_MEMORY_CHILD"

func memoryChildMain(string) {}
