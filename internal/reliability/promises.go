// SPDX-License-Identifier: Apache-2.0

// Package reliability connects the driver's promises with the tests that show them. A test calls Shown, and
// docs/reliability.md lists what the tests of one run have shown. A promise that no test has shown is an error.
//
// To add a promise, add it to Promises and call Shown in the test. "make torture" runs the tests and writes the page.
package reliability

// Promise is what the driver does when something goes wrong.
type Promise struct {
	// ID is F- and a number. It never changes its meaning, so that others can refer to it.
	ID string
	// Fault is what goes wrong.
	Fault string
	// Text is what the driver does then.
	Text string
}

// Promises are all promises, in the order of the page.
func Promises() []Promise {
	return []Promise{
		{"F-01", "The API server is away when a volume is published",
			"kubelet is told to try again (`Unavailable`); nothing is left mounted or recorded"},
		{"F-02", "The API server is away when an object changes",
			"the files stay as they were, a metric tells how old they are, republishing succeeds; once it is back, the files " +
				"follow"},
		{"F-03", "The driver restarts while the API server is away",
			"the driver serves, unpublishes and keeps the files; once the API server is back, they follow"},
		{"F-04", "A watch can't go on (410 Gone, etcd compaction)",
			"the object is read anew, the files stay whole meanwhile, and the API server is not asked in a loop"},
		{"F-05", "An object is deleted, and created again", "the files stay, and are replaced by those of the new object"},
		{"F-06", "An optional object is missing", "the volume is empty; the files appear when the object does"},
		{"F-07", "Keys come, go and are renamed",
			"files change in one step; a reader sees one version whole; a required key that is missing keeps the last good " +
				"version"},
		{"F-08", "The driver is killed (SIGKILL), at any step of publish, refresh, unpublish and recovery",
			"the next process finishes or undoes the step: no mount, generation, directory, record, watch or descriptor is " +
				"left over"},
		{"F-09", "The driver is told to stop (SIGTERM) while it works",
			"calls under way end, mounts stay, the exit code is 0, and a socket of the next instance is left alone"},
		{"F-10", "The node reboots: mounts and records are gone, directories are left",
			"republish makes the volume anew, from the newest version of its objects; unpublish succeeds"},
		{"F-11", "Unpublish never comes",
			"a volume whose directory kubelet has removed is forgotten, with its watch and record"},
		{"F-12", "Kubelet restarts and publishes all volumes again",
			"each publish succeeds, and each volume keeps its one mount"},
		{"F-13", "Publish and unpublish of one volume race; a caller gives up while its call goes on",
			"the calls run one after the other; what was answered last is what is there"},
		{"F-14", "A process is in a volume that is unmounted",
			"unpublish succeeds at once; the memory is freed when the process leaves"},
		{"F-15", "500 volumes arrive at once",
			"all are published, none is refused, the requests to the API server are bounded"},
		{"F-16", "Memory or the volume's size is exhausted",
			"a publish is undone, with the code that says so; a refresh keeps the old version whole"},
		{"F-17", "The disk under the records is slow",
			"only the volume that is being recorded waits; a call that takes too long is undone"},
		{"F-18", "Something else is mounted at the target, or the volume with other attributes",
			"a publish is refused and changes nothing; an unpublish takes away every mount at its target, since kubelet waits " +
				"for that"},
		{"F-19", "The directory of records is read-only or full",
			"a publish is undone; refresh and unpublish work on; `/readyz` fails, since no volume can be published, and " +
				"`/healthz` succeeds"},
		{"F-20", "A record is truncated, garbage, huge, or another's",
			"it is moved aside, and a metric counts it; all others count; republish makes it anew"},
		{"F-21", "A record is of another version of the driver (downgrade, upgrade)",
			"it is not interpreted, and stays until the volume is published again or goes; both work"},
		{"F-22", "The directory of records holds links, pipes, sockets, directories", "none is followed, none blocks"},
		{"F-23", "Something is where the socket should be",
			"a stale socket is replaced; anything else is an error that names it"},
		{"F-24", "Two instances run at once, with the same `--state-dir`",
			"the second one ends and says why; the first one's exit does not take away the socket of the next"},
		{"F-25", "The clock jumps",
			"nothing happens, except that the API server counts as away (F-02) while its certificate is not valid at that time"},
		{"F-26", "A Secret becomes immutable and is made anew, data moves to binaryData, the type changes",
			"the files follow"},
		{"F-27", "The right to read is taken away",
			"the files stay, a metric and an Event say why; it never counts as \"missing\""},
		{"F-28", "The network swallows packets without an error",
			"the driver notices within a minute, and the files follow once it heals; until it notices, a new pod starts with " +
				"the last known content of an object that is watched on its node, and its volume is stale afterwards"},
		{"F-29", "An API server answers with an older version",
			"the driver asks for the version that it has, or for the newest: what was shown does not become older"},
		{"F-30", "The driver has a bug: a call, a refresh or the reading of an object panics",
			"the call fails, the process and all other volumes live on, no lock stays held"},
		{"F-31", "Time: many thousand volumes come and go, objects are changed a million times",
			"updates that come faster than writes are merged; memory, goroutines, descriptors, mounts and records return to " +
				"what they were"},
		{"F-32", "Mounts would not reach the pods (propagation)", "the driver does not start and says what to set"},
		{"F-33", "Kubelet's root directory is reached through a symbolic link", "it is resolved once, at the start"},
		{"F-34", "An object is removed between reading it and watching it", "the removal is not lost"},
		{"F-35", "Readers look all the time while the driver is killed and restarted",
			"no reader ever sees an older version after a newer one, a missing file, a wrong owner or a wider mode; nor two " +
				"versions in one file, except with the layout `in-place`; nor in two files, with the layout `links`"},
		{"F-36", "A call comes late, twice or out of order: a publish after its unpublish, an unpublish of what is not there",
			"each call gets the answer that kubelet expects, and nothing is left after the last unpublish"},
		{"F-37", "Somebody exchanges a part of the target path for a link, a file, a pipe or a socket while the driver works",
			"the volume is where kubelet asked for it, or the call fails: nothing outside of it is mounted, written or removed"},
		{"F-38", "The driver's socket is flooded: with connections, garbage, calls, messages that never end or are too long",
			"kubelet's calls are served meanwhile; memory is bounded, and given back with all descriptors and goroutines"},
		{"F-39",
			"Somebody reads what the driver leaves to read: logs at each level, metrics, Events, errors, status, records, " +
				"`/proc`", "no value of a Secret and no token is in it, whole, in part or encoded"},
		{"F-40", "The driver's process is taken over",
			"it has four capabilities and may not gain more, a seccomp filter, and no core dump; " +
				"only root can enter its state " +
				"directory, also if kubelet made it"},
		{"F-41", "A volume or the node reaches a limit",
			"the request is refused with the limit's flag in the error; " +
				"published volumes stay, and freed room can be used again"},
		{"F-42",
			"A request is hostile: any field, attribute, target or order of calls in [hostile-inputs.md](hostile-inputs.md)",
			"it is refused before anything is touched; what is published stays as it is"},
		{"F-43",
			"The API server has an older version than the files: its cache lags behind after a restart of the driver, or etcd " +
				"was restored",
			"what was shown does not become older than etcd: a read is at least as new as the files; " +
				"the volume is stale until " +
				"the API server can answer; what a restored etcd has counts, and the files follow it"},
		{"F-44", "A process holds the directory of its volume, so that the kernel makes each writer wait in it",
			"other volumes are refreshed, after at most a second for each set of workers; the held volume is stale in metric " +
				"and status, and after ten seconds in an Event; its republish and unpublish end; its files follow when the " +
				"process lets go"},
		{"F-45",
			"The driver is killed (SIGKILL) while a thread of it is stuck in a volume's directory, " +
				"so that the process can't end",
			"the next driver starts, and takes over and refreshes the other volumes; what the stuck thread was doing changes " +
				"nothing that is shown"},
		{"F-46", "One pod, or all pods of one namespace, take as much as they can",
			"they get their share of the volumes, the memory and the watched objects of the node (`--pod-share`, " +
				"`--namespace-share`); a volume beyond it is refused before any of its objects is read, and other pods get their " +
				"volumes"},
		{"F-47", "The API server refuses the objects of a volume, as many as a volume may have",
			"each object is asked for once; kubelet's next attempts make a few requests, until a moment has passed"},
		{"F-48", "`--http-address` is flooded: with idle connections, unfinished requests, requests for metrics",
			"`/healthz` answers, and kubelet's calls are served meanwhile; the connections are bounded, and the oldest is " +
				"closed for a new one"},
		{"F-49", "One object is updated without end, and many volumes show it",
			"a volume is written at most every 100 ms, and all volumes of the object together take at most half of a CPU; the " +
				"last update is shown; namespaces take turns, and of a namespace the volume that was written longest ago comes " +
				"first"},
		{"F-50", "A connection to the API server answers pings while nothing comes through it",
			"a watch that brings neither an event nor a bookmark for three minutes is made anew, through a new connection"},
		{"F-51", "The API server does not know the driver any more (401)",
			"this counts as an outage: the files stay, new pods of a watched object start, and nothing is taken for a denied " +
				"right"},
		{"F-52", "A line of the node's mount table is unreadable (a mount with an empty source)",
			"the driver starts, and recognizes its own mounts; it reads the lines of those alone"},
		{"F-53", "The driver is killed while it changes the files of a volume with the layout `files` or `in-place`",
			"each file shows the old or the new version, with `in-place` also a mixture that is not shorter than both; the " +
				"next process completes a change that has begun, also while the API server is away"},
	}
}
