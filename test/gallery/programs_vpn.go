// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

func openVPN() program {
	return program{
		name:     "OpenVPN, --key",
		packages: []string{"openvpn"},
		checks:   "Nobody but the owner has access to the private key.",
		forge: `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes ` +
			`-keyout $V/tls.key -out $V/tls.crt -days 30 -subj /CN=peer 2>/dev/null`,
		mount: "/keys",
		script: `
peer="openvpn --dev null --proto udp4 --remote 127.0.0.1 --ca /keys/tls.crt --cert /keys/tls.crt --key /keys/tls.key \
  --verb 3"
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
	}
}

func tinc() program {
	return program{
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
	}
}
