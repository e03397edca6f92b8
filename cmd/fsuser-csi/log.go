// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"
	"k8s.io/klog/v2"
)

// maxVerbosity is the highest verbosity of the log. From 6 on, the API client logs requests, and from 8 on it logs
// their bodies, which contain Secrets.
const maxVerbosity = 5

// The values of --log-format.
const (
	logFormatFlag = "log-format"
	logText       = "text"
	logJSON       = "json"
)

// setUpLog sets the verbosity and the format of the log. With logJSON, klog, gRPC and the standard library log through
// one handler, so that each line is JSON.
func (o nodeOptions) setUpLog() error {
	if o.verbosity < 0 || o.verbosity > maxVerbosity {
		return fmt.Errorf("-v %d: must be 0 to %d; above that the API client would log Secrets", o.verbosity,
			maxVerbosity)
	}
	// Go's HTTP client reads this variable before main, so the driver can't ignore it.
	if strings.Contains(os.Getenv("GODEBUG"), "http2debug=") {
		return errors.New("the environment variable GODEBUG has http2debug in it: the API client would log Secrets " +
			"and the driver's token; take it out")
	}
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	if err := flags.Set("v", strconv.Itoa(o.verbosity)); err != nil {
		return err
	}
	if o.logFormat == logJSON {
		handler := jsonHandler(os.Stderr, o.verbosity)
		klog.SetSlogLogger(slog.New(handler))
		slog.SetLogLoggerLevel(slog.LevelError) // net/http logs errors, through package log
		slog.SetDefault(slog.New(handler))
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, slog.NewLogLogger(handler, slog.LevelError).Writer()))
	}
	return nil
}

// jsonHandler returns the handler of --log-format=json. A line of verbosity 1 or more has the level DEBUG: log
// collectors do not know slog's names of the levels between DEBUG and INFO. A duration is text, such as 1.5s.
func jsonHandler(w io.Writer, verbosity int) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{
		AddSource: true,
		Level:     slog.Level(-verbosity),
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if level, ok := a.Value.Any().(slog.Level); ok && level < slog.LevelInfo {
				return slog.String(a.Key, slog.LevelDebug.String())
			}
			if a.Value.Kind() == slog.KindDuration {
				return slog.String(a.Key, a.Value.String())
			}
			return a
		},
	})
}

// printError prints the error that ends a command. A command with --log-format=json prints it as a line of its log.
func printError(w io.Writer, cmd *cobra.Command, err error) {
	if format := cmd.Flag(logFormatFlag); format != nil && format.Value.String() == logJSON {
		slog.New(jsonHandler(w, 0)).Error("Exiting", "err", err)
		return
	}
	fmt.Fprintln(w, "Error:", err)
}
