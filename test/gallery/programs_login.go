// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

const sshdForge = `
ssh-keygen -q -t ed25519 -N '' -f /tmp/login
cp /tmp/login.pub $V/authorized_keys
cp /tmp/login $E/CLIENT_KEY
rm /tmp/login*
`

func openSSHServer() program {
	return program{
		name:     "OpenSSH server, authorized_keys",
		packages: []string{"openssh-server", "openssh-client"},
		checks: "`StrictModes`: each directory on the path belongs to the user or root, and nobody else can write to it. " +
			"An in-tree volume is a directory of mode 1777.",
		forge: sshdForge,
		mount: "/home/app/.ssh",
		script: `
umask 077
echo "$CLIENT_KEY" >/tmp/client
ssh-keygen -q -t ed25519 -N '' -f /tmp/host
/usr/sbin/sshd -f /dev/null -D -e -p 2222 -h /tmp/host -o PidFile=none -o UsePAM=no -o StrictModes=yes \
  -o LogLevel=DEBUG1 2>/tmp/log &
AWAIT_PID=$! await 30 'sshd that listens' ssh-keyscan -p 2222 127.0.0.1
code=0
ssh -p 2222 -i /tmp/client -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
  127.0.0.1 'echo logged in as $(id -un)' || code=$?
grep -a -E 'Authentication refused|Could not open' /tmp/log || true
exit $code`,
		works:      `logged in as app`,
		attributes: map[string]string{"mode": "0600", "dirMode": "0700"},
		attempts: append(three(
			attempt{says: `Authentication refused: bad ownership or modes for directory \S+`},
			attempt{says: `Could not open .*authorized_keys': Permission denied`},
			attempt{says: `Authentication refused: bad ownership or modes for directory \S+`},
		), attempt{mode: 0o644, subPath: true, ends: accepts, says: `logged in as app`}),
		example: example{
			name: "openssh-server",
			command: []string{
				"sh", "-ec", `
ssh-keygen -q -t ed25519 -N '' -f /tmp/host
exec /usr/sbin/sshd -f /dev/null -D -e -p 2222 -h /tmp/host -o PidFile=none -o UsePAM=no
`,
			},
			content: map[string]string{"authorized_keys": "ssh-ed25519 replace-this-by-a-public-key app@example.com"},
		},
	}
}

func dropbearServer() program {
	return program{
		name:     "Dropbear server, authorized_keys",
		packages: []string{"dropbear-bin", "openssh-client"},
		checks: "Each directory on the path belongs to the user or root, and nobody else can write to it, as with " +
			"`StrictModes` of OpenSSH.",
		forge: sshdForge,
		mount: "/home/app/.ssh",
		script: `
umask 077
echo "$CLIENT_KEY" >/tmp/client
dropbearkey -t ed25519 -f /tmp/host >/dev/null 2>&1
dropbear -F -E -s -r /tmp/host -p 2222 -P /tmp/pid 2>/tmp/log &
AWAIT_PID=$! await 30 'dropbear that listens' ssh-keyscan -p 2222 127.0.0.1
code=0
ssh -p 2222 -i /tmp/client -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
  127.0.0.1 'echo logged in as $(id -un)' || code=$?
cat /tmp/log
exit $code`,
		works:      `logged in as app`,
		attributes: map[string]string{"mode": "0600", "dirMode": "0700"},
		attempts: append(three(
			attempt{says: `\S+ must be owned by user or root, and not writable by \w+ or \w+`},
			attempt{says: `\S+ must be owned by user or root, and not writable by \w+ or \w+`},
			attempt{says: `\S+ must be owned by user or root, and not writable by \w+ or \w+`},
		), attempt{mode: 0o644, subPath: true, ends: accepts, says: `logged in as app`}),
		example: example{
			name: "dropbear",
			command: []string{
				"sh", "-ec", `
dropbearkey -t ed25519 -f /tmp/host
exec dropbear -F -E -s -r /tmp/host -p 2222 -P /tmp/pid
`,
			},
			content: map[string]string{"authorized_keys": "ssh-ed25519 replace-this-by-a-public-key app@example.com"},
		},
	}
}

func openSSHClient() program {
	return program{
		name:     "OpenSSH client, identity file",
		packages: []string{"openssh-client", "openssh-server"},
		checks:   "The mode of a key that belongs to the user. The client does not check the mode of another user's key.",
		forge: `
ssh-keygen -q -t ed25519 -N '' -f /tmp/identity
cp /tmp/identity $V/id_ed25519
cp /tmp/identity.pub $E/AUTHORIZED`,
		mount: "/keys",
		script: `
umask 077
ssh-keygen -q -t ed25519 -N '' -f /tmp/host
echo "$AUTHORIZED" >/tmp/authorized
/usr/sbin/sshd -f /dev/null -D -e -p 2222 -h /tmp/host -o PidFile=none -o UsePAM=no -o StrictModes=no \
  -o AuthorizedKeysFile=/tmp/authorized 2>/tmp/log &
AWAIT_PID=$! await 30 'sshd that listens' ssh-keyscan -p 2222 127.0.0.1
ssh -p 2222 -i /keys/id_ed25519 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
  127.0.0.1 'echo logged in as $(id -un)'`,
		works:      `logged in as app`,
		attributes: map[string]string{"mode": "0600"},
		attempts: three(
			attempt{ends: accepts, says: `logged in as app`},
			attempt{says: `Load key "\S+": Permission denied`},
			attempt{ends: accepts, says: `logged in as app`},
		),
		example: example{
			name:    "openssh-client",
			command: []string{"ssh", "-i", "/keys/id_ed25519", "app@host.example.com"},
			content: map[string]string{"id_ed25519": "replace this by a private key"},
		},
	}
}

func sudo() program {
	return program{
		name:     "sudo, sudoers.d",
		packages: []string{"sudo"},
		checks: "The directory belongs to root, and nobody else can write to it. An in-tree volume is a directory of " +
			"mode 1777.",
		forge:      `echo 'app ALL=(root) NOPASSWD: /usr/bin/id' >$V/app`,
		mount:      "/etc/sudoers.d",
		script:     `echo "sudo made me $(sudo --non-interactive /usr/bin/id -un)" && sudo --non-interactive /usr/bin/id -un`,
		works:      `sudo made me root`,
		attributes: map[string]string{"uid": "0", "gid": "0", "mode": "0440"},
		attempts: []attempt{
			{mode: 0o644, says: `sudo: /etc/sudoers\.d is world writable`},
			{mode: 0o440, says: `sudo: /etc/sudoers\.d is world writable`},
			{mode: 0o440, fsGroup: true, says: `sudo: /etc/sudoers\.d is world writable`},
			{mode: 0o440, subPath: true, ends: accepts, says: `sudo made me root`},
		},
		example: example{
			name:    "sudo",
			command: []string{"sudo", "--non-interactive", "/usr/bin/id"},
			content: map[string]string{"app": "app ALL=(root) NOPASSWD: /usr/bin/id"},
		},
	}
}
