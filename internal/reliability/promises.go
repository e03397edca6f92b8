// SPDX-License-Identifier: Apache-2.0

// Package reliability connects the driver's promises with the tests that show them. A test calls Shown, and
// docs/reliability.md lists the results of one run. A promise that no test has shown is an error.
//
// To add a promise, add it to Promises and call Shown in the test. "make torture" runs the tests and writes the page.
package reliability

// Promise is a promise about a fault.
type Promise struct {
	// ID is F- and a number. It never changes its meaning, so that other documents can refer to it.
	ID string
	// Fault is the fault.
	Fault string
	// Text describes what the driver does after the fault.
	Text string
}

// Promises are all promises, in the order of the page.
func Promises() []Promise {
	return []Promise{
		{"F-01", "The API server does not answer when a volume is published",
			"kubelet retries (`Unavailable`); no mount and no record is left"},
		{"F-02", "The API server does not answer when an object changes",
			"the files stay as they are, a metric shows for how long, republishing succeeds; after the outage, the files " +
				"are refreshed"},
		{"F-03", "The driver restarts during an outage of the API server",
			"the driver serves calls, unpublishes volumes and keeps the files; after the outage, the files are refreshed"},
		{"F-04", "A watch can't continue (410 Gone, etcd compaction)",
			"the driver reads the object again, the files stay complete in the meantime, and the driver makes no endless " +
				"requests"},
		{"F-05", "An object is deleted and created again",
			"the files stay, and are replaced by those of the new object"},
		{"F-06", "An optional object is missing",
			"the volume is empty; the files appear after the object is created"},
		{"F-07", "Keys are added, removed and renamed",
			"files change in one step; a reader sees one complete version; if a required key is missing, the files stay as " +
				"they are"},
		{"F-08", "The driver is killed (SIGKILL) at any step of publish, refresh, unpublish and recovery",
			"the next process completes or undoes the step: no mount, generation, directory, record, watch or descriptor " +
				"is left"},
		{"F-09", "The driver is stopped (SIGTERM) while it works",
			"running calls end, mounts stay, the exit code is 0, and the socket of the next instance stays"},
		{"F-10", "The node reboots: mounts and records are gone, directories are left",
			"a republish publishes the volume again, with the newest version of its objects; unpublish succeeds"},
		{"F-11", "Kubelet never calls unpublish",
			"the driver forgets a volume whose directory kubelet has removed, and ends its watch and removes its record"},
		{"F-12", "Kubelet restarts and publishes all volumes again",
			"each publish succeeds, and each volume keeps its one mount"},
		{"F-13", "Publish and unpublish of one volume run at the same time; a caller gives up while its call continues",
			"the calls run one after the other; the last answered call determines the state"},
		{"F-14", "A process uses a volume that is unmounted",
			"unpublish succeeds at once; the memory is freed when the process ends"},
		{"F-15", "500 volumes are published at once",
			"all publishes succeed, and the number of requests to the API server is bounded"},
		{"F-16", "Memory or the size of the volume is exhausted",
			"a publish is undone and returns the code for this case; a refresh keeps the old version complete"},
		{"F-17", "The disk of the records is slow",
			"only the volume whose record is written waits; a call that takes too long is undone"},
		{"F-18", "Another file system, or the volume with other attributes, is mounted at the target",
			"a publish is refused and changes nothing; an unpublish removes all mounts at its target, because kubelet " +
				"waits for that"},
		{"F-19", "The directory of records is read-only or full",
			"a publish is undone; refresh and unpublish continue to work; `/readyz` fails, because no volume can be " +
				"published, and `/healthz` succeeds"},
		{"F-20", "A record is truncated, garbage, huge, or belongs to another volume",
			"the record is moved aside, and a metric counts it; all other records are used; a republish writes a new record"},
		{"F-21", "A record is from another version of the driver (downgrade, upgrade)",
			"the record is not used, and stays until the volume is published again or unpublished; both work"},
		{"F-22", "The directory of records contains links, pipes, sockets and directories",
			"the driver follows no link, and is not blocked"},
		{"F-23", "The path of the socket is in use",
			"a stale socket is replaced; for any other file, the error names the file"},
		{"F-24", "Two instances run at once with the same `--state-dir`",
			"the second instance ends and reports the reason; the end of the first instance does not remove the socket of " +
				"the next one"},
		{"F-25", "The clock jumps",
			"the driver is not affected, except that it treats the API server as unavailable (F-02) while the server's " +
				"certificate is not valid"},
		{"F-26", "A Secret becomes immutable and is created again, data moves to binaryData, the type changes",
			"the files are refreshed"},
		{"F-27", "The right to read the object is withdrawn",
			"the files stay, a metric and an Event show the reason; the object never counts as missing"},
		{"F-28", "The network drops packets without an error",
			"the driver detects this within a minute, and refreshes the files after the network recovers; until the " +
				"detection, a new pod starts with the last known content of an object that its node watches already, and the " +
				"volume becomes stale afterwards"},
		{"F-29", "An API server answers with an older version",
			"the driver requires at least the version that it has, or the newest: the content of the files does not become " +
				"older"},
		{"F-30", "The driver has a bug: a call, a refresh or the reading of an object panics",
			"the call fails, the process and all other volumes continue, and no lock stays locked"},
		{"F-31",
			"Long operation: many thousands of volumes are published and unpublished, objects are changed a million times",
			"updates that come faster than writes are merged; memory, goroutines, descriptors, mounts and records return " +
				"to their initial numbers"},
		{"F-32", "Mounts would not reach the pods (propagation)",
			"the driver does not start and reports the setting to change"},
		{"F-33", "Kubelet's root directory is a symbolic link",
			"the driver resolves the link once, at its start"},
		{"F-34", "An object is removed between reading and watching it",
			"the removal is not lost"},
		{"F-35", "Readers read without a pause while the driver is killed and restarted",
			"no reader ever sees an older version after a newer one, a missing file, a wrong owner or a wider mode; no " +
				"reader sees two versions in one file, except with the layout `in-place`, or in two files with the layout " +
				"`links`"},
		{"F-36",
			"A call comes late, twice or out of order: a publish after its unpublish, an unpublish of an unknown volume",
			"each call gets the answer that kubelet expects, and nothing is left after the last unpublish"},
		{"F-37", "A part of the target path is replaced by a link, a file, a pipe or a socket while the driver works",
			"the volume is at its target, or the call fails: outside of the volume, nothing is mounted, written or removed"},
		{"F-38",
			"The driver's socket is flooded with connections, garbage, calls, and messages that are endless or too long",
			"the driver serves kubelet's calls in the meantime; its memory is bounded, and afterwards freed with all " +
				"descriptors and goroutines"},
		{"F-39",
			"An attacker reads all output of the driver: logs at each level, metrics, Events, errors, status, records, " +
				"`/proc`",
			"no value of a Secret and no token is in the output, neither complete, in part nor encoded"},
		{"F-40", "The driver's process is taken over",
			"the process has four capabilities and can't gain more, a seccomp filter, and no core dump; only root can " +
				"enter its state directory, even if kubelet created it"},
		{"F-41", "A volume or the node reaches a limit",
			"the request is refused with the limit's flag in the error; published volumes stay, and freed room can be used " +
				"again"},
		{"F-42",
			"A request is hostile: any field, attribute, target or order of calls in [hostile-inputs.md](hostile-inputs.md)",
			"the request is refused before anything changes; published volumes stay as they are"},
		{"F-43",
			"The API server has an older version than the files: its cache lags behind after a restart of the driver, or " +
				"etcd was restored",
			"the content of the files does not become older than etcd: a read is at least as new as the files; the volume " +
				"is stale until the API server can answer; the content of a restored etcd counts, and the files are refreshed " +
				"from it"},
		{"F-44", "A process holds the directory of its volume, so that the kernel blocks each writer in it",
			"other volumes are refreshed, after at most a second for each set of workers; metric and status show the held " +
				"volume as stale, and after ten seconds an Event does; its republish and unpublish end; its files are " +
				"refreshed after the process releases the directory"},
		{"F-45",
			"The driver is killed (SIGKILL) while one of its threads is blocked in a volume's directory, so that the " +
				"process can't end",
			"the next driver starts, and takes over and refreshes the other volumes; the blocked thread changes no visible " +
				"file afterwards"},
		{"F-46", "One pod, or all pods of one namespace, use as much as they can",
			"they get their share of the volumes, the memory and the watched objects of the node (`--pod-share`, " +
				"`--namespace-share`); a volume beyond the share is refused before any of its objects is read, and other pods " +
				"get their volumes"},
		{"F-47", "The API server refuses the objects of a volume with the largest allowed number of objects",
			"the driver requests each object once; for a moment, kubelet's next attempts cause only a few requests"},
		{"F-48", "`--http-address` is flooded: with idle connections, unfinished requests, requests for metrics",
			"`/healthz` answers, and kubelet's calls are served meanwhile; the connections are bounded, and the oldest is " +
				"closed for a new one"},
		{"F-49", "One object is updated without end, and many volumes show it",
			"a volume is written at most every 100 ms, and all volumes of the object together take at most half of a CPU; " +
				"the last update is shown; namespaces take turns, and within a namespace the volume that was written longest " +
				"ago comes first"},
		{"F-50", "A connection to the API server answers pings but delivers no data",
			"if a watch brings neither an event nor a bookmark for three minutes, the driver makes a new watch on a new " +
				"connection"},
		{"F-51", "The API server does not know the driver any more (401)",
			"this counts as an outage: the files stay, new pods of a watched object start, and it does not count as a " +
				"denied right"},
		{"F-52", "A line of the node's mount table is unreadable (a mount with an empty source)",
			"the driver starts, and recognizes its own mounts, because it reads only their lines"},
		{"F-53", "The driver is killed while it changes the files of a volume with the layout `files` or `in-place`",
			"each file shows the old or the new version, or with `in-place` a mixture that is not shorter than both; the " +
				"next process completes a change that has begun, even during an outage of the API server"},
	}
}
