// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

// programs are the programs of the gallery, in the order of the document. The functions are in files by topic.
var programs = []program{
	openSSHServer(),
	dropbearServer(),
	psql(),
	psqlComposed(),
	erlang(),
	munged(),
	mosquitto(),
	gnuPG(),
	fetchmail(),
	msmtp(),
	monit(),
	openVPN(),
	tinc(),
	tnftp(),
	rubyGems(),
	nginx(),
	sudo(),
	openSSHClient(),
	haproxy(),
	postgreSQLServer(),
}
