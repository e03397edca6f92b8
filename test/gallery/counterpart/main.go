// SPDX-License-Identifier: Apache-2.0

// Command counterpart is the server for the gallery's clients. It speaks a little POP3 (port 1110), SMTP (2525), FTP
// (2121) and the gem server's HTTP (8080), for the user app with the password of the environment variable PASSWORD, and
// for no other user.
package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
)

func main() {
	password := os.Getenv("PASSWORD")
	if password == "" {
		log.Fatal("PASSWORD is not set")
	}
	failed := make(chan error)
	for port, talk := range map[int]conversation{1110: pop3(password), 2525: smtp(password), 2121: ftp(password)} {
		go func() { failed <- listen(port, talk) }()
	}
	go func() { failed <- http.ListenAndServe(":8080", gems(password)) }()
	log.Fatal(<-failed)
}

// conversation makes the greeting and the answers of one connection.
type conversation func() (greeting string, answer func(line string) string)

func listen(port int, talk conversation) error {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go serve(connection, talk)
	}
}

func serve(connection net.Conn, talk conversation) {
	defer connection.Close()
	text, answer := talk()
	lines := bufio.NewScanner(connection)
	for {
		if text != "" {
			if _, err := fmt.Fprintf(connection, "%s\r\n", text); err != nil {
				return
			}
		}
		if !lines.Scan() {
			return
		}
		text = answer(lines.Text())
	}
}

// word returns the command of a line, and its argument.
func word(line string) (command, argument string) {
	command, argument, _ = strings.Cut(line, " ")
	return strings.ToUpper(command), argument
}

func pop3(password string) conversation {
	const mail = "From: bob@example.org\r\nSubject: hello\r\n\r\nhello from the mailbox"
	return func() (string, func(string) string) {
		loggedIn := false
		return "+OK ready", func(line string) string {
			command, argument := word(line)
			switch {
			case command == "USER" || command == "QUIT" || command == "NOOP":
				return "+OK"
			case command == "PASS" && argument == password:
				loggedIn = true
				return "+OK"
			case !loggedIn:
				return "-ERR"
			case command == "STAT" || command == "LIST" && argument != "":
				return fmt.Sprintf("+OK 1 %d", len(mail))
			case command == "LIST":
				return fmt.Sprintf("+OK\r\n1 %d\r\n.", len(mail))
			case command == "UIDL" && argument != "":
				return "+OK 1 one"
			case command == "UIDL":
				return "+OK\r\n1 one\r\n."
			case command == "RETR" || command == "TOP":
				return "+OK\r\n" + mail + "\r\n."
			case command == "DELE":
				return "+OK"
			}
			return "-ERR"
		}
	}
}

func smtp(password string) conversation {
	login := base64.StdEncoding.EncodeToString([]byte("\x00app\x00" + password))
	return func() (string, func(string) string) {
		loggedIn, data := false, false
		return "220 ready", func(line string) string {
			command, argument := word(line)
			switch {
			case data && line == ".":
				data = false
				return "250 accepted from app"
			case data:
				return ""
			case command == "EHLO":
				return "250-counterpart\r\n250 AUTH PLAIN"
			case command == "AUTH" && argument == "PLAIN "+login:
				loggedIn = true
				return "235 welcome"
			case command == "QUIT":
				return "221 bye"
			case !loggedIn:
				return "535 no"
			case command == "DATA":
				data = true
				return "354 go on"
			}
			return "250 OK"
		}
	}
}

func ftp(password string) conversation {
	return func() (string, func(string) string) {
		loggedIn := false
		return "220 ready", func(line string) string {
			command, argument := word(line)
			switch {
			case command == "USER":
				return "331 password?"
			case command == "PASS" && argument == password:
				loggedIn = true
				return "230 app is logged in"
			case command == "QUIT":
				return "221 bye"
			case !loggedIn:
				return "530 no"
			case command == "PWD":
				return `257 "/home" is the folder`
			}
			return "502 unknown"
		}
	}
}

func gems(password string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != password {
			http.Error(w, "HTTP Basic: Access denied.", http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "---\n- email: app@example.org\n  id: 1\n  handle: app\n")
	})
}
