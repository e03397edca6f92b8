// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

func tnftp() program {
	return program{
		name:        "tnftp, .netrc",
		packages:    []string{"tnftp"},
		checks:      "Nobody but the owner has access to a file with a password.",
		forge:       `echo "machine peer login app password $PASSWORD" >$V/.netrc`,
		mount:       "/keys",
		environment: map[string]string{"NETRC": "/keys/.netrc"},
		script: `
echo pwd | tnftp -v peer 2121 >/tmp/out 2>&1 || true
cat /tmp/out
grep -q '^Remote directory' /tmp/out`,
		works:      `Remote directory: /home`,
		attributes: map[string]string{"mode": "0600"},
		attempts: three(
			attempt{says: `Error: \.netrc file is readable by others`},
			attempt{says: `Can't read .*\.netrc': Permission denied`},
			attempt{says: `Error: \.netrc file is readable by others`},
		),
		example: example{
			name:    "tnftp",
			command: []string{"tnftp", "-v", "ftp.example.com"},
			content: map[string]string{".netrc": "machine ftp.example.com login app password replace-this"},
		},
	}
}

func rubyGems() program {
	return program{
		name:       "RubyGems, credentials",
		packages:   []string{"ruby-rubygems", "ruby"},
		checks:     "The file has mode 0600 and no other.",
		forge:      `printf -- '---\n:rubygems_api_key: %s\n' "$PASSWORD" >$V/credentials`,
		mount:      "/home/app/.gem",
		script:     `gem owner demo --host http://peer:8080 </dev/null`,
		works:      `- app@example\.org`,
		attributes: map[string]string{"mode": "0600"},
		attempts: []attempt{
			{mode: 0o644,
				says: `(?s)Your gem push credentials file located at:.*has file permissions of 0644 but 0600 is required`},
			{mode: 0o600, says: `Failed to load \S+ due to permissions problem`},
			{mode: 0o600, fsGroup: true,
				says: `(?s)Your gem push credentials file located at:.*has file permissions of 0640 but 0600 is required`},
		},
		example: example{
			name:    "rubygems",
			command: []string{"gem", "owner", "my-gem"},
			content: map[string]string{"credentials": "---\n:rubygems_api_key: replace-this\n"},
		},
	}
}
