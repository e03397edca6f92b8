// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

func haproxy() program {
	return program{
		name:     "HAProxy, PEM file",
		packages: []string{"haproxy", "curl"},
		checks: "`bind ... ssl crt /keys/haproxy.pem` reads the certificate and the private key from one file. A Secret of " +
			"the type `kubernetes.io/tls` has two keys. HAProxy also reads the private key from `haproxy.pem.key`.",
		forge: `
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $V/tls.key -out $V/tls.crt \
	-days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null
cp $V/tls.crt $E/CERTIFICATE`,
		mount: "/keys",
		script: `
echo "$CERTIFICATE" >/tmp/ca.crt
cat >/tmp/haproxy.cfg <<END
defaults
	mode http
	timeout client 30s
	timeout connect 30s
	timeout server 30s
frontend tls
	bind 127.0.0.1:8443 ssl crt /keys/haproxy.pem
	http-request return status 200 content-type text/plain string "hello over TLS\n"
END
haproxy -db -f /tmp/haproxy.cfg &
AWAIT_PID=$! await 30 'answer of haproxy' curl --fail --cacert /tmp/ca.crt https://localhost:8443/
curl --silent --fail --cacert /tmp/ca.crt https://localhost:8443/`,
		works: `hello over TLS`,
		attributes: map[string]string{
			"mode": "0600", "template/haproxy.pem": "$(tls.crt)$(tls.key)",
		},
		attempts: []attempt{
			{mode: 0o644, says: `unable to stat SSL certificate from file '\S+' : No such file or directory`},
			{mode: 0o644, items: map[string]string{"tls.crt": "haproxy.pem"}, says: `No Private Key found in '\S+'`},
			{mode: 0o400, fsGroup: true, items: map[string]string{"tls.crt": "haproxy.pem", "tls.key": "haproxy.pem.key"},
				ends: accepts, says: `hello over TLS`},
		},
		example: example{
			name:    "haproxy",
			command: []string{"haproxy", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"},
			content: map[string]string{
				"tls.crt": "replace this by the certificate\n",
				"tls.key": "replace this by the private key\n",
			},
		},
	}
}

func nginx() program {
	return program{
		name:     "nginx, htpasswd that changes",
		packages: []string{"nginx", "curl"},
		checks: "nginx reads the file of `auth_basic_user_file` at each request. The file is in a directory of the image, " +
			"whose other files a volume would hide: the file needs a `subPath`.",
		forge: `
echo "app:$(openssl passwd -apr1 first)" >$V/htpasswd
echo "app:$(openssl passwd -apr1 second)" >$U/htpasswd`,
		mount:   "/etc/nginx",
		subPath: true,
		script: `
mkdir /tmp/www
echo hello >/tmp/www/index.html
cat >/tmp/nginx.conf <<END
daemon off;
pid /tmp/pid;
error_log stderr;
events {}
http {
	include /etc/nginx/mime.types;
	access_log off;
	client_body_temp_path /tmp/body;
	proxy_temp_path /tmp/proxy;
	fastcgi_temp_path /tmp/fastcgi;
	uwsgi_temp_path /tmp/uwsgi;
	scgi_temp_path /tmp/scgi;
	server {
		listen 127.0.0.1:8080;
		root /tmp/www;
		auth_basic keys;
		auth_basic_user_file /etc/nginx/htpasswd;
	}
}
END
nginx -e stderr -c /tmp/nginx.conf &
AWAIT_PID=$! await 30 'answer of nginx' curl http://127.0.0.1:8080/
answer() { curl --silent --output /dev/null --write-out '%{http_code}' --user "app:$1" http://127.0.0.1:8080/; }
[ "$(answer first)" = 200 ]
export FIRST=$(cat /watched/htpasswd)
touch /tmp/ready
await 100 'update of the volume' sh -c '[ "$(cat /watched/htpasswd)" != "$FIRST" ]'
echo "after the update: $(answer second) with the new password, $(answer first) with the old one"
[ "$(answer second)" = 200 ]`,
		works:      `after the update: 200 with the new password, 401 with the old one`,
		attributes: map[string]string{"mode": "0400", "layout": "in-place"},
		attempts: []attempt{
			{mode: 0o644, says: `open\(\) "/etc/nginx/mime.types" failed \(2: No such file or directory\)`},
			{mode: 0o400, subPath: true, says: `open\(\) "/etc/nginx/htpasswd" failed \(13: Permission denied\)`},
			{mode: 0o644, subPath: true, ends: outdated,
				says: `after the update: 401 with the new password, 200 with the old one`},
			{mode: 0o400, fsGroup: true, subPath: true, ends: outdated,
				says: `after the update: 401 with the new password, 200 with the old one`},
		},
		example: example{
			name:    "nginx",
			command: []string{"nginx", "-g", "daemon off;"},
			content: map[string]string{"htpasswd": "app:replace-this-by-the-output-of-openssl-passwd"},
		},
	}
}
