package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hearth/internal/env"
	"hearth/internal/rpc"
)

// The exit codes; see the root command's help.
const (
	exitFailed       = 1
	exitUsage        = 2
	exitPrecondition = 3
	exitUnreachable  = 4
	exitOwn          = 125 // of the commands that exit with a command's own code
	exitSignal       = 128
)

// ownCode marks commands that exit with the code of what they run.
const ownCode = "own-exit-code"

// codeError ends the program with a code and without a word.
type codeError int

func (e codeError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usagef is an error of the command line.
func usagef(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errUsage}, args...)...)
}

var errUsage = errors.New("usage")

// exitCode reports err and decides the exit code.
func (a *app) exitCode(cmd *cobra.Command, err error) int {
	var code codeError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	text := strings.TrimPrefix(err.Error(), errUsage.Error()+": ")
	fmt.Fprintf(a.stderr, "hearthctl: %s\n", text)
	if m := mend(err); m != "" {
		fmt.Fprintf(a.stderr, "hearthctl: %s\n", m)
	}
	if cmd != nil && cmd.Annotations[ownCode] != "" {
		return exitOwn
	}
	return codeOf(err)
}

func codeOf(err error) int {
	switch {
	case errors.Is(err, errUsage), errors.Is(err, env.ErrInvalid):
		return exitUsage
	case errors.Is(err, env.ErrState), errors.Is(err, env.ErrFenced), errors.Is(err, env.ErrExhausted),
		errors.Is(err, env.ErrExists), errors.Is(err, env.ErrUnsupported):
		return exitPrecondition
	case errors.Is(err, env.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return exitUnreachable
	default:
		return exitFailed
	}
}

// mend says what to do about an error whose text cannot know it.
func mend(err error) string {
	var unknownCA x509.UnknownAuthorityError
	var badHost x509.HostnameError
	var tlsErr *tls.CertificateVerificationError
	switch {
	case errors.As(err, &unknownCA):
		return "set HEARTH_CA or --ca to the controller's ca.pem"
	case errors.As(err, &badHost):
		return "use a name that the certificate has: the controller's api.names, the agent's api.advertise"
	case errors.As(err, &tlsErr):
		return "check the certificate and both clocks"
	case rpc.Answered(err) && errors.Is(err, env.ErrDenied):
		return "check HEARTH_TOKEN: the controller's keysFile has the SHA-256 of the keys that it takes"
	case !rpc.Answered(err) && errors.Is(err, env.ErrUnavailable):
		return "check the address (HEARTH_SERVER, HEARTH_NODE_SOCKET), and that something listens there"
	default:
		return ""
	}
}

// noArgs and exactArgs say what is wrong in the words of this program.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasParent() {
		return usagef("%s takes no arguments, have %q", cmd.CommandPath(), args[0])
	}
	text := fmt.Sprintf("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += ": did you mean " + near[0] + "?"
	}
	return usagef("%s: see hearthctl --help", text)
}

func exactArgs(what ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(what) {
			return usagef("want %s: %s %s", strings.Join(what, " and "), cmd.CommandPath(), strings.Join(what, " "))
		}
		return nil
	}
}
