// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

func erlang() program {
	return program{
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
	}
}

func munged() program {
	return program{
		name:     "munged, munge.key",
		packages: []string{"munge"},
		checks:   "The key is no symbolic link, belongs to the daemon's user, and nobody else can read it.",
		forge:    `mungekey --create --keyfile=$V/munge.key`,
		mount:    "/keys",
		script: `
mkdir -m 755 /tmp/munge && cd /tmp/munge
munged --key-file=/keys/munge.key --socket=$PWD/socket --pid-file=$PWD/pid --log-file=$PWD/log --seed-file=$PWD/seed
echo 'hello from munge' | munge --socket=$PWD/socket | unmunge --socket=$PWD/socket`,
		works:      `hello from munge`,
		attributes: map[string]string{"mode": "0400", "dirMode": "0700", "layout": "files"},
		attempts: append(three(
			attempt{says: `munged: Error: .* should not be a symbolic link`},
			attempt{says: `munged: Error: .* should not be a symbolic link`},
			attempt{says: `munged: Error: .* should not be a symbolic link`},
		), attempt{mode: 0o400, fsGroup: true, subPath: true, says: `munged: Error: .* should be owned by UID .*`}),
		example: example{
			name: "munge",
			command: []string{
				"sh", "-ec", `
mkdir -m 755 /tmp/munge
cd /tmp/munge
exec munged --foreground --key-file=/keys/munge.key \
  --socket=$PWD/socket --pid-file=$PWD/pid --seed-file=$PWD/seed
`,
			},
			content: map[string]string{"munge.key": "replace this by the output of mungekey, which is 128 random bytes"},
		},
	}
}

func mosquitto() program {
	return program{
		name:     "Mosquitto 2.1, password_file",
		packages: []string{"mosquitto", "mosquitto-clients", "systemd-standalone-sysusers"},
		suite:    "forky",
		checks: "The file is no symbolic link, unless `MOSQUITTO_UNSAFE_ALLOW_SYMLINKS` is set. A version to come refuses " +
			"a file that does not belong to the user and the group, or that everybody can read; 2.1 warns.",
		forge: `
mosquitto_passwd -b -c $V/passwords app "$PASSWORD" 2>/dev/null
printf %s "$PASSWORD" >$E/MQTT_PASSWORD`,
		mount: "/keys",
		script: `
printf 'listener 1883 127.0.0.1\npassword_file /keys/passwords\n' >/tmp/mosquitto.conf
mosquitto -c /tmp/mosquitto.conf &
AWAIT_PID=$! await 30 'login' mosquitto_pub -u app -P "$MQTT_PASSWORD" -t greeting --retain -m 'hello from mosquitto'
mosquitto_sub -u app -P "$MQTT_PASSWORD" -t greeting -C 1 -W 30`,
		works:      `hello from mosquitto`,
		attributes: map[string]string{"mode": "0600", "layout": "files"},
		attempts: append(three(
			attempt{says: `Error: Unable to open pwfile "\S+"`},
			attempt{says: `Error: Unable to open pwfile "\S+"`},
			attempt{says: `Error: Unable to open pwfile "\S+"`},
		),
			attempt{mode: 0o644, subPath: true, ends: warns,
				says: `Warning: File \S+ has world readable permissions\. Future versions will refuse to load this file\.`},
			attempt{mode: 0o400, fsGroup: true, subPath: true, ends: warns,
				says: `Warning: File \S+ owner is not app\. Future versions will refuse to load this file\.`},
		),
		example: example{
			name: "mosquitto",
			command: []string{
				"sh", "-ec", `
printf 'listener 1883\npassword_file /keys/passwords\n' >/tmp/mosquitto.conf
exec mosquitto -c /tmp/mosquitto.conf
`,
			},
			content: map[string]string{"passwords": "app:replace this by the output of mosquitto_passwd"},
		},
	}
}

func monit() program {
	return program{
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
	}
}
