// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

const sshdForge = `
ssh-keygen -q -t ed25519 -N '' -f /tmp/login
cp /tmp/login.pub $V/authorized_keys
cp /tmp/login $E/CLIENT_KEY
rm /tmp/login*
`

// programs is the gallery.
var programs = []program{
	{
		name:     "OpenSSH server, authorized_keys",
		packages: []string{"openssh-server", "openssh-client"},
		checks:   "`StrictModes`: each directory on the path belongs to the user or root, and nobody else can write to it. An in-tree volume is a directory of mode 1777.",
		forge:    sshdForge,
		mount:    "/home/app/.ssh",
		script: `
umask 077
echo "$CLIENT_KEY" >/tmp/client
ssh-keygen -q -t ed25519 -N '' -f /tmp/host
/usr/sbin/sshd -f /dev/null -D -e -p 2222 -h /tmp/host -o PidFile=none -o UsePAM=no -o StrictModes=yes -o LogLevel=DEBUG1 2>/tmp/log &
AWAIT_PID=$! await 30 'sshd that listens' ssh-keyscan -p 2222 127.0.0.1
code=0
ssh -p 2222 -i /tmp/client -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null 127.0.0.1 'echo logged in as $(id -un)' || code=$?
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
	},
	{
		name:     "Dropbear server, authorized_keys",
		packages: []string{"dropbear-bin", "openssh-client"},
		checks:   "Each directory on the path belongs to the user or root, and nobody else can write to it, as with `StrictModes` of OpenSSH.",
		forge:    sshdForge,
		mount:    "/home/app/.ssh",
		script: `
umask 077
echo "$CLIENT_KEY" >/tmp/client
dropbearkey -t ed25519 -f /tmp/host >/dev/null 2>&1
dropbear -F -E -s -r /tmp/host -p 2222 -P /tmp/pid 2>/tmp/log &
AWAIT_PID=$! await 30 'dropbear that listens' ssh-keyscan -p 2222 127.0.0.1
code=0
ssh -p 2222 -i /tmp/client -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null 127.0.0.1 'echo logged in as $(id -un)' || code=$?
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
	},
	{
		name:        "psql, .pgpass",
		packages:    []string{"postgresql-client-15", "postgresql-15"},
		checks:      "libpq ignores a password file that group or others have access to.",
		forge:       `echo "peer:5432:*:app:$PASSWORD" >$V/.pgpass`,
		mount:       "/keys",
		environment: map[string]string{"PGPASSFILE": "/keys/.pgpass"},
		script: `exec /usr/lib/postgresql/15/bin/psql --no-password -h peer -U app -d postgres -At ` +
			`-c "select 'connected as ' || current_user"`,
		works:      `connected as app`,
		attributes: map[string]string{"mode": "0600"},
		attempts: three(
			attempt{says: `WARNING: password file .* has group or world access; permissions should be u=rw \(0600\) or less`},
			attempt{says: `fe_sendauth: no password supplied`},
			attempt{says: `WARNING: password file .* has group or world access; permissions should be u=rw \(0600\) or less`},
		),
		example: example{
			name: "psql",
			command: []string{
				"psql", "--host=db.example.com", "--username=app", "--dbname=app",
				"--command=select current_user",
			},
			content: map[string]string{".pgpass": "db.example.com:5432:*:app:replace-this-by-the-password"},
		},
	},
	{
		name:     "Erlang, .erlang.cookie",
		packages: []string{"erlang-base"},
		checks:   "The cookie is accessible by its owner only. RabbitMQ and ejabberd start with it.",
		forge: `
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >$V/.erlang.cookie
cp $V/.erlang.cookie $E/COOKIE`,
		mount:       "/keys",
		environment: map[string]string{"HOME": "/keys"},
		script: `
export ERL_CRASH_DUMP=/dev/null
HOME=/tmp erl -noinput -sname one -setcookie "$COOKIE" &
AWAIT_PID=$! await 30 'other node' sh -c 'epmd -names | grep -q "^name one "'
exec erl -noinput -sname two -eval '
	{ok, Host} = inet:gethostname(),
	io:format("ping: ~p~n", [net_adm:ping(list_to_atom("one@" ++ Host))]),
	halt().'`,
		works:      `ping: pong`,
		attributes: map[string]string{"mode": "0400"},
		attempts: three(
			attempt{says: `Cookie file [^ ]+ must be accessible by owner only`},
			attempt{says: `(Failed to read|Error when reading) [^ ]+\.erlang\.cookie:? [^"\\}]*(eacces|permission denied)`},
			attempt{says: `Cookie file [^ ]+ must be accessible by owner only`},
		),
		example: example{
			name:    "erlang",
			command: []string{"erl", "-noinput", "-sname", "app"},
			content: map[string]string{".erlang.cookie": "replace-this-by-the-cookie"},
		},
	},
	{
		name:     "munged, munge.key",
		packages: []string{"munge"},
		checks:   "The key belongs to the daemon's user, nobody else can read it, and it is no symbolic link: name it through `..data`.",
		forge:    `mungekey --create --keyfile=$V/munge.key`,
		mount:    "/keys",
		script: `
mkdir -m 755 /tmp/munge && cd /tmp/munge
munged --key-file=/keys/..data/munge.key --socket=$PWD/socket --pid-file=$PWD/pid --log-file=$PWD/log --seed-file=$PWD/seed
echo 'hello from munge' | munge --socket=$PWD/socket | unmunge --socket=$PWD/socket`,
		works:      `hello from munge`,
		attributes: map[string]string{"mode": "0400", "dirMode": "0700"},
		attempts: three(
			attempt{says: `munged: Error: .*`},
			attempt{says: `munged: Error: .*`},
			attempt{says: `munged: Error: .*`},
		),
		example: example{
			name: "munge",
			command: []string{
				"sh", "-ec", `
mkdir -m 755 /tmp/munge
cd /tmp/munge
exec munged --foreground --key-file=/keys/..data/munge.key \
  --socket=$PWD/socket --pid-file=$PWD/pid --seed-file=$PWD/seed
`,
			},
			content: map[string]string{"munge.key": "replace this by the output of mungekey, which is 128 random bytes"},
		},
	},
	{
		name:     "GnuPG, home directory with a private key",
		packages: []string{"gpg", "gpg-agent"},
		checks:   "The home directory belongs to the user, and nobody else has access.",
		forge: `
export GNUPGHOME=/tmp/gnupg
mkdir -m 700 $GNUPGHOME
gpg --batch --quiet --passphrase '' --quick-generate-key app@example.org default default 2>/dev/null
echo 'hello from gpg' | gpg --batch --quiet --armor --trust-model always --recipient app@example.org --encrypt >$E/MESSAGE
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
	},
	{
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
	},
	{
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
	},
	{
		name:     "Monit, monitrc",
		packages: []string{"monit"},
		checks:   "The file belongs to the user, and nobody else has access.",
		forge: `cat >$V/monitrc <<END
set daemon 60
set logfile /tmp/monit.log
set pidfile /tmp/monit.pid
set idfile /tmp/monit.id
set statefile /tmp/monit.state
set httpd unixsocket /tmp/monit.socket allow app:"$PASSWORD"
check file control with path /keys/..data/monitrc
END`,
		mount: "/keys",
		script: `
monit -c /keys/monitrc -t
monit -c /keys/monitrc -I >/tmp/out 2>&1 &
AWAIT_PID=$! await 30 'answer of monit' monit -c /keys/monitrc status
monit -c /keys/monitrc -B summary`,
		works:      `(?m)^ *control +.*File`,
		attributes: map[string]string{"mode": "0600"},
		attempts: three(
			attempt{says: `The control file '\S+' (must be owned by you|permission \S+ is wrong, maximum 0700 allowed)`},
			attempt{says: `The control file '\S+' is not readable`},
			attempt{says: `The control file '\S+' (must be owned by you|permission \S+ is wrong, maximum 0700 allowed)`},
		),
		example: example{
			name:    "monit",
			command: []string{"monit", "-c", "/keys/monitrc", "-I"},
			content: map[string]string{"monitrc": `set daemon 60
set pidfile /tmp/monit.pid
set idfile /tmp/monit.id
set statefile /tmp/monit.state
set httpd port 2812 allow app:"replace-this"
check system $HOST if loadavg (5min) > 4 then alert`},
		},
	},
	{
		name:     "OpenVPN, --key",
		packages: []string{"openvpn"},
		checks:   "Nobody but the owner has access to the private key.",
		forge: `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $V/tls.key -out $V/tls.crt ` +
			`-days 30 -subj /CN=peer 2>/dev/null`,
		mount: "/keys",
		script: `
peer="openvpn --dev null --proto udp4 --remote 127.0.0.1 --ca /keys/tls.crt --cert /keys/tls.crt --key /keys/tls.key --verb 3"
$peer --tls-server --dh none --lport 1194 --rport 1195 >/tmp/server 2>&1 &
$peer --tls-client --lport 1195 --rport 1194 >/tmp/client 2>&1 &
code=0
AWAIT_PID=$! await 30 'tunnel' grep -q 'Initialization Sequence Completed' /tmp/client || code=$?
cat /tmp/client
exit $code`,
		works:      `Initialization Sequence Completed`,
		attributes: map[string]string{"mode": "0600"},
		attempts: three(
			attempt{ends: warns, says: `WARNING: file '\S+' is group or others accessible`},
			attempt{says: `Cannot pre-load keyfile .*|.*tls\.key.*Permission denied.*`},
			attempt{ends: warns, says: `WARNING: file '\S+' is group or others accessible`},
		),
		example: example{
			name: "openvpn",
			command: []string{
				"openvpn", "--client", "--dev", "tun", "--remote", "vpn.example.com",
				"--ca", "/keys/tls.crt", "--cert", "/keys/tls.crt", "--key", "/keys/tls.key",
			},
			content: map[string]string{
				"tls.crt": "replace this by the certificate",
				"tls.key": "replace this by the private key",
			},
		},
	},
	{
		name:     "tinc, rsa_key.priv",
		packages: []string{"tinc"},
		checks:   "Nobody but the owner has access to the private key.",
		forge: `
for node in a b; do
	mkdir -p /tmp/tinc/$node/hosts
	printf 'Name = %s\nDeviceType = dummy\nAddressFamily = ipv4\n' $node >/tmp/tinc/$node/tinc.conf
done
echo 'ConnectTo = a' >>/tmp/tinc/b/tinc.conf
printf 'Address = 127.0.0.1\nPort = 6551\n' >/tmp/tinc/a/hosts/a
printf 'Port = 6552\n' >/tmp/tinc/b/hosts/b
for node in a b; do tincd -c /tmp/tinc/$node -K2048 </dev/null 2>/dev/null; done
cp /tmp/tinc/a/tinc.conf /tmp/tinc/a/rsa_key.priv $V
cp /tmp/tinc/a/hosts/a $V/hosts--a
cp /tmp/tinc/b/hosts/b $V/hosts--b
cp /tmp/tinc/b/rsa_key.priv $E/B_KEY
cp /tmp/tinc/b/tinc.conf $E/B_CONF
cp /tmp/tinc/a/hosts/a $E/A_HOST
cp /tmp/tinc/b/hosts/b $E/B_HOST`,
		mount: "/keys",
		script: `
umask 077
mkdir -p /tmp/b/hosts
echo "$B_CONF" >/tmp/b/tinc.conf; echo "$B_KEY" >/tmp/b/rsa_key.priv
echo "$A_HOST" >/tmp/b/hosts/a; echo "$B_HOST" >/tmp/b/hosts/b
tincd -c /tmp/b -D -d2 --pidfile=/tmp/b.pid >/tmp/b.log 2>&1 &
tincd -c /keys -D -d2 --pidfile=/tmp/a.pid >/tmp/a.log 2>&1 &
code=0
AWAIT_PID=$! await 30 'connection' grep -q 'Connection with b .* activated' /tmp/a.log || code=$?
sed 's/ port [0-9]*//' /tmp/a.log
exit $code`,
		works:      `Connection with b .* activated`,
		attributes: map[string]string{"mode": "0600", "dirMode": "0700"},
		attempts: three(
			attempt{ends: warns, says: "insecure file permissions for RSA private key file .*"},
			attempt{says: "Error reading RSA private key file .*: Permission denied|.*Permission denied"},
			attempt{ends: warns, says: "insecure file permissions for RSA private key file .*"},
		),
		example: example{
			name:    "tinc",
			command: []string{"tincd", "-c", "/keys", "-D", "--pidfile=/tmp/pid"},
			content: map[string]string{
				"tinc.conf":    "Name = a\nConnectTo = b\n",
				"rsa_key.priv": "replace this by the private key",
				"hosts--a":     "replace this by the public key of this host",
				"hosts--b":     "Address = b.example.com\nreplace this by the public key of the other host\n",
			},
		},
	},
	{
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
	},
	{
		name:       "RubyGems, credentials",
		packages:   []string{"ruby-rubygems", "ruby"},
		checks:     "The file has mode 0600 and no other.",
		forge:      `printf -- '---\n:rubygems_api_key: %s\n' "$PASSWORD" >$V/credentials`,
		mount:      "/home/app/.gem",
		script:     `gem owner demo --host http://peer:8080 </dev/null`,
		works:      `- app@example\.org`,
		attributes: map[string]string{"mode": "0600"},
		attempts: []attempt{
			{mode: 0o644, says: `(?s)Your gem push credentials file located at:.*has file permissions of 0644 but 0600 is required`},
			{mode: 0o600, says: `Failed to load \S+ due to permissions problem`},
			{mode: 0o600, fsGroup: true, says: `(?s)Your gem push credentials file located at:.*has file permissions of 0640 but 0600 is required`},
		},
		example: example{
			name:    "rubygems",
			command: []string{"gem", "owner", "my-gem"},
			content: map[string]string{"credentials": "---\n:rubygems_api_key: replace-this\n"},
		},
	},
	{
		name:       "sudo, sudoers.d",
		packages:   []string{"sudo"},
		checks:     "The directory belongs to root, and nobody else can write to it. An in-tree volume is a directory of mode 1777.",
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
	},
	{
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
/usr/sbin/sshd -f /dev/null -D -e -p 2222 -h /tmp/host -o PidFile=none -o UsePAM=no -o StrictModes=no -o AuthorizedKeysFile=/tmp/authorized 2>/tmp/log &
AWAIT_PID=$! await 30 'sshd that listens' ssh-keyscan -p 2222 127.0.0.1
ssh -p 2222 -i /keys/id_ed25519 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null 127.0.0.1 'echo logged in as $(id -un)'`,
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
	},
	{
		name:     "PostgreSQL server, ssl_key_file",
		packages: []string{"postgresql-15"},
		checks:   "Mode 0600 or less if the key belongs to the server's user, 0640 or less if the key belongs to root.",
		forge: `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $V/tls.key -out $V/tls.crt ` +
			`-days 30 -subj /CN=localhost 2>/dev/null`,
		mount: "/keys",
		script: `
export PATH=/usr/lib/postgresql/15/bin:$PATH
initdb -D /tmp/data -A trust -U app --no-sync >/dev/null
postgres -D /tmp/data -k /tmp -c fsync=off -c listen_addresses=127.0.0.1 -c ssl=on -c ssl_cert_file=/keys/tls.crt -c ssl_key_file=/keys/tls.key 2>&1 &
AWAIT_PID=$! await 30 'answer of postgres' pg_isready -h 127.0.0.1
psql "host=localhost hostaddr=127.0.0.1 user=app dbname=postgres sslmode=verify-full sslrootcert=/keys/tls.crt" -At \
	-c "select 'encrypted: ' || version from pg_stat_ssl where pid = pg_backend_pid()"`,
		works:      `encrypted: TLSv1\.3`,
		attributes: map[string]string{"mode": "0600"},
		attempts: []attempt{
			{mode: 0o644, says: `private key file "\S+" has group or world access`},
			{mode: 0o400, says: `could not (load|access|open) .*"\S+": Permission denied`},
			{mode: 0o400, fsGroup: true, ends: accepts, says: `encrypted: TLSv1\.3`},
		},
		example: example{
			name: "postgresql",
			command: []string{
				"postgres", "-D", "/var/lib/postgresql/data", "-c", "ssl=on", "-c", "ssl_cert_file=/keys/tls.crt", "-c",
				"ssl_key_file=/keys/tls.key",
			},
			content: map[string]string{
				"tls.crt": "replace this by the certificate",
				"tls.key": "replace this by the private key",
			},
		},
	},
}
