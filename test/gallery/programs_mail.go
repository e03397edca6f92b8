// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

func gnuPG() program {
	return program{
		name:     "GnuPG, home directory with a private key",
		packages: []string{"gpg", "gpg-agent"},
		checks:   "The home directory belongs to the user, and nobody else has access.",
		forge: `
export GNUPGHOME=/tmp/gnupg
mkdir -m 700 $GNUPGHOME
gpg --batch --quiet --passphrase '' --quick-generate-key app@example.org default default 2>/dev/null
echo 'hello from gpg' | gpg --batch --quiet --armor --trust-model always --recipient app@example.org \
  --encrypt >$E/MESSAGE
cp $GNUPGHOME/pubring.kbx $GNUPGHOME/trustdb.gpg $V
for key in $GNUPGHOME/private-keys-v1.d/*; do cp $key $V/private-keys-v1.d--$(basename $key); done
gpgconf --kill gpg-agent`,
		mount:       "/home/app/.gnupg",
		environment: map[string]string{"GNUPGHOME": "/home/app/.gnupg"},
		script:      `echo "$MESSAGE" | gpg --batch --lock-never --decrypt`,
		works:       `hello from gpg`,
		attributes:  map[string]string{"mode": "0600", "dirMode": "0700"},
		attempts: three(
			attempt{ends: warns, says: `gpg: WARNING: unsafe (ownership|permissions) on homedir '\S+'`},
			attempt{says: `gpg: .*Permission denied`},
			attempt{ends: warns, says: `gpg: WARNING: unsafe (ownership|permissions) on homedir '\S+'`},
		),
		example: example{
			name:    "gnupg",
			command: []string{"gpg", "--batch", "--lock-never", "--list-secret-keys"},
			content: map[string]string{
				"pubring.kbx":                    "replace this by the file pubring.kbx",
				"trustdb.gpg":                    "replace this by the file trustdb.gpg",
				"private-keys-v1.d--KEYGRIP.key": "replace this by the private key, and KEYGRIP by its keygrip",
			},
		},
	}
}

func fetchmail() program {
	return program{
		name:     "fetchmail, fetchmailrc",
		packages: []string{"fetchmail"},
		checks:   "The file belongs to the user, and nobody else has access.",
		forge: `cat >$V/fetchmailrc <<END
poll peer protocol pop3 port 1110 auth password user "app" password "$PASSWORD" sslproto "" mda "cat >>/tmp/mail"
END`,
		mount:      "/keys",
		script:     `fetchmail -f /keys/fetchmailrc --pidfile /tmp/pid --idfile /tmp/ids --nosyslog && cat /tmp/mail`,
		works:      `hello from the mailbox`,
		attributes: map[string]string{"mode": "0600"},
		attempts: three(
			attempt{says: `File \S+ (must be owned by you|must have no more than .*permissions)\.?`},
			attempt{says: `File \S+ must be owned by you|fetchmail: .*Permission denied`},
			attempt{says: `File \S+ (must be owned by you|must have no more than .*permissions)\.?`},
		),
		example: example{
			name: "fetchmail",
			command: []string{
				"fetchmail", "--nodetach", "-f", "/keys/fetchmailrc",
				"--pidfile", "/tmp/pid", "--idfile", "/tmp/ids",
			},
			content: map[string]string{"fetchmailrc": `set daemon 300
poll mail.example.com protocol imap user "app" password "replace this"
  mda "cat >>/tmp/mail"`},
		},
	}
}

func msmtp() program {
	return program{
		name:     "msmtp, msmtprc",
		packages: []string{"msmtp"},
		checks:   "A file with a password belongs to the user, and nobody else has access.",
		forge: `cat >$V/msmtprc <<END
account default
host peer
port 2525
from app@example.org
auth plain
user app
password $PASSWORD
END`,
		mount:      "/keys",
		script:     `printf 'Subject: hello\n\nhello\n' | msmtp --file=/keys/msmtprc --debug bob@example.org`,
		works:      `250 accepted from app`,
		attributes: map[string]string{"mode": "0600"},
		attempts: three(
			attempt{says: `msmtp: \S+ contains secrets and therefore must be owned by you`},
			attempt{says: `msmtp: \S+ ?(must be owned by you|.*Permission denied)`},
			attempt{says: `msmtp: \S+ contains secrets and therefore must be owned by you`},
		),
		example: example{
			name:    "msmtp",
			command: []string{"sh", "-c", `printf 'Subject: hello\n\nhello\n' | msmtp --file=/keys/msmtprc bob@example.com`},
			content: map[string]string{"msmtprc": `account default
host mail.example.com
port 587
tls on
from app@example.com
auth plain
user app
password replace-this`},
		},
	}
}
