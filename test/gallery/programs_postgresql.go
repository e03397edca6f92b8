// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

func psql() program {
	return program{
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
	}
}

func psqlComposed() program {
	return program{
		name:     "psql, .pgpass composed of an operator's Secret",
		packages: []string{"postgresql-client-15", "postgresql-15"},
		checks: "libpq reads one line of host, port, database, user and password, and ignores a file that group or others " +
			"have access to. An operator's Secret has a key for each. A `:` or `\\` in a key needs a `\\` before it.",
		forge: `
printf peer >$V/host
printf 5432 >$V/port
printf postgres >$V/dbname
printf app >$V/user
printf %s "$PASSWORD" >$V/password`,
		mount:       "/keys",
		environment: map[string]string{"PGPASSFILE": "/keys/.pgpass"},
		script: `exec /usr/lib/postgresql/15/bin/psql --no-password -h peer -U app -d postgres -At ` +
			`-c "select 'connected as ' || current_user"`,
		works: `connected as app`,
		attributes: map[string]string{
			"mode": "0600", "template/.pgpass": "$(host):$(port):$(dbname):$(user):$(password)",
		},
		attempts: []attempt{
			{mode: 0o644, says: `fe_sendauth: no password supplied`},
			{mode: 0o600, fsGroup: true, items: map[string]string{"password": ".pgpass"},
				says: `WARNING: password file .* has group or world access; permissions should be u=rw \(0600\) or less`},
		},
		example: example{
			name: "psql-composed",
			command: []string{
				"psql", "--host=db.example.com", "--username=app", "--dbname=app",
				"--command=select current_user",
			},
			content: map[string]string{
				"host": "db.example.com", "port": "5432", "dbname": "app", "user": "app",
				"password": "replace-this-by-the-password",
			},
		},
	}
}

func postgreSQLServer() program {
	return program{
		name:     "PostgreSQL server, ssl_key_file",
		packages: []string{"postgresql-15"},
		checks:   "Mode 0600 or less if the key belongs to the server's user, 0640 or less if the key belongs to root.",
		forge: `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes ` +
			`-keyout $V/tls.key -out $V/tls.crt -days 30 -subj /CN=localhost 2>/dev/null`,
		mount: "/keys",
		script: `
export PATH=/usr/lib/postgresql/15/bin:$PATH
initdb -D /tmp/data -A trust -U app --no-sync >/dev/null
postgres -D /tmp/data -k /tmp -c fsync=off -c listen_addresses=127.0.0.1 -c ssl=on \
  -c ssl_cert_file=/keys/tls.crt -c ssl_key_file=/keys/tls.key 2>&1 &
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
	}
}
